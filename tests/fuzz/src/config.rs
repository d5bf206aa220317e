//! A configuration file. A mistake is an error that shows no secret, and what is accepted can be written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use workspace_gateway::testing::config::Config;
use workspace_gateway_fuzz::within_memory;

const MEMORY: usize = 64 << 20;
/// Stands for a secret anywhere in a file. It is like one: no setting has such a name or value.
const SECRET: &str = "S3cr3tS3cr3tS3cr3tS3cr3tS3cr3tS3cr3tAA==";

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let text = text.replace('\u{1}', SECRET);
    match within_memory(MEMORY, || Config::from_layers("config.toml", &text, &[])) {
        Err(error) => {
            let error = error.to_string();
            assert!(!error.is_empty() && !error.contains(SECRET), "{error}");
        }
        Ok(config) => {
            // What it does not show is a secret.
            let written = config.to_toml().replace("(not shown)", SECRET);
            assert!(Config::from_layers("written.toml", &written, &[]).is_ok(), "{written}");
        }
    }
});
