//! A configuration file. A mistake is an error that shows no secret, and what is accepted can be written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use workspace_gateway::testing::config::Config;
use workspace_gateway_fuzz::within_memory;

const MEMORY: usize = 64 << 20;
/// Stands for a secret. It is like one: no setting has such a name or value.
const SECRET: &str = "S3cr3tS3cr3tS3cr3tS3cr3tS3cr3tS3cr3tAA==";
/// Lines whose value is the secret. Values of other settings may be shown.
const SECRET_LINES: [&str; 5] = [
    "secret = \"\u{1}\"",
    "security_token = \"\u{1}\"",
    "admin_token = \"\u{1}\"",
    "headers = \"\u{1}\"",
    "engine = \"\u{1}\"",
];

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let line = |line: &str| line.replace('\u{1}', if SECRET_LINES.contains(&line) { SECRET } else { "x" });
    let text = text.split('\n').map(line).collect::<Vec<_>>().join("\n");
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
