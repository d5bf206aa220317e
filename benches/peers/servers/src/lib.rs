//! Shared by the programs here. The modules of `run.py` start them with positional arguments.

pub mod client;

/// The arguments, if their number is that of the words of the usage.
pub fn arguments<const N: usize>(usage: &str) -> Result<[String; N], String> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    given.try_into().map_err(|_| format!("usage: {usage}"))
}
