//! What the programs here have in common. They are started by modules of `run.py` with words in a fixed order.

pub mod client;

/// The arguments, if there are as many as the usage has words.
pub fn arguments<const N: usize>(usage: &str) -> Result<[String; N], String> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    given.try_into().map_err(|_| format!("usage: {usage}"))
}
