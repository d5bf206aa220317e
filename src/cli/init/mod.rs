//! `init`: writes a configuration file from flags and answers, checks it, probes upstream, and prints the lines for a
//! client. It must not replace a file without `--force`, nor write what `check` refuses.
//!
//! ```text
//! ask      questions on a terminal    clients    what clients must change    file    the file on disk
//! ```

mod ask;
mod clients;
mod file;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use toml::{Table, Value};

use super::flags::FlagSettings;
use super::health::reachable;
use super::{USAGE, failure, print, probe, report_unusable_files, secrets, warn, warnings};
use crate::config::names::Region;
use crate::config::secret::Secret;
use crate::config::{Config, EnvironmentKey, Override, set};
use crate::proxy_config::ProxyConfig;
use crate::server::Server;
use ask::Answers;
use clients::Client;

const DEFAULT_FILE: &str = "workspace-gateway.toml";

/// The path of the setting that most gateways need.
const REGION: &[&str] = &["region"];

#[derive(Args)]
pub(super) struct Init {
    /// What clients authenticate with. A key is in WORKSPACE_GATEWAY_ACCESS_KEY_ID and …_SECRET_FILE or …_SECRET.
    #[arg(long, value_enum)]
    credential: Option<Credential>,
    /// The client whose lines are printed.
    #[arg(long, value_enum)]
    client: Option<Client>,
    /// Replace the file if it exists.
    #[arg(long)]
    force: bool,
    /// Accept a region that this program does not know.
    #[arg(long)]
    unknown_region: bool,
    /// Do not connect to upstream.
    #[arg(long)]
    no_probe: bool,
    #[command(flatten)]
    settings: FlagSettings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Credential {
    Token,
    AccessKey,
}

pub(super) fn run(init: Init) -> ExitCode {
    match configure(init) {
        Ok(code) => code,
        Err(message) => failure(USAGE, &message),
    }
}

fn configure(init: Init) -> Result<ExitCode, String> {
    let environment = |name: &str| std::env::var_os(name);
    let (file, mut given) = init.settings.for_new_file(&environment);
    let file = file.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    if file.exists() && !init.force {
        return Err(exists(&file));
    }
    if let Some(unknown) = given_region(&given).and_then(warnings::unknown_region_name).filter(|_| !init.unknown_region)
    {
        let known = warnings::known_regions();
        return Err(format!("{unknown}: expected one of {known}. If it is a new region, add --unknown-region"));
    }
    let key = secrets::access_key(&environment).map_err(|error| error.to_string())?;
    let credential = init.credential.or(key.as_ref().map(|_| Credential::AccessKey));
    let Answers { region, credential, key, client } = ask::missing(has_upstream(&given), credential, key, init.client)?;
    given.extend(region.map(|region| Override { path: REGION, value: region.into(), origin: String::new() }));
    let key = key.filter(|_| credential == Credential::AccessKey);
    let text = text(&given, key.as_ref())?;

    let config = match Config::from_layers(&file.display().to_string(), &text, &[]) {
        Ok(config) => config,
        Err(error) => {
            for error in error.each() {
                failure(USAGE, error);
            }
            return Err(format!("{} is not written", file.display()));
        }
    };
    if report_unusable_files(&config) {
        return Err(format!("{} is not written", file.display()));
    }
    let proxy_config = ProxyConfig::read(environment).map_err(|error| error.to_string())?;
    let config = Config { proxy_config, ..config };
    file::write(&file, &text, init.force).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(&file),
        _ => format!("cannot write {}: {error}", file.display()),
    })?;
    warn(&config, Some(&file), Server::check(&config).ok().and_then(|checked| checked.certificate_not_after));

    let _ = writeln!(io::stdout(), "{} is written.", file.display());
    let probed = if init.no_probe { ExitCode::SUCCESS } else { probe::run(&config) };
    let printed = print(&next_steps(&file, &config, client, credential));
    Ok(if probed == ExitCode::SUCCESS { printed } else { probed })
}

/// Whether the settings name the upstreams.
fn has_upstream(given: &[Override]) -> bool {
    let has = |path: &[&str]| given.iter().any(|given| given.path == path);
    has(REGION) || has(&["upstream", "workspace_url"]) && has(&["upstream", "appstream_url"])
}

/// The region, if it is a valid name and upstream URLs are made of it.
fn given_region(given: &[Override]) -> Option<&str> {
    let find = |path: &[&str]| given.iter().find(|given| given.path == path).and_then(|given| given.value.as_str());
    let has_urls = find(&["upstream", "workspace_url"]).and(find(&["upstream", "appstream_url"])).is_some();
    find(REGION).filter(|region| !has_urls && region.parse::<Region>().is_ok())
}

fn exists(file: &Path) -> String {
    let file = file.display();
    format!("{file} exists: name another file with --config, or replace this one with --force")
}

/// The contents of the file.
///
/// # Errors
/// If a setting cannot be written as TOML.
fn text(given: &[Override], key: Option<&EnvironmentKey>) -> Result<String, String> {
    let mut table = Table::new();
    for Override { path, value, .. } in given {
        set(&mut table, path, value.clone());
    }
    let settings = toml::to_string(&table).map_err(|error| error.to_string())?;
    let mut text = format!(
        "# Settings of workspace-gateway. `workspace-gateway check --config FILE` prints all of them, with defaults.\n\
         {settings}"
    );
    if let Some(EnvironmentKey { id, secret, .. }) = key {
        let secret = match secret {
            Secret::Inline(_) => return Err("a secret is not written to the file".to_owned()),
            Secret::File(path) => format!("file = {}", Value::from(path.to_string_lossy().into_owned())),
            Secret::Environment(name) => format!("env = {}", Value::from(name.as_str())),
        };
        text += &format!("\n[[access_key]]\nid = {}\nsecret = {{ {secret} }}\n", Value::from(id.as_str()));
    }
    Ok(text)
}

fn next_steps(file: &Path, config: &Config, client: Client, credential: Credential) -> String {
    let lines = client.lines(config, credential);
    let file = file.display();
    format!(
        "\nStart the gateway:\n\n  workspace-gateway serve --config {file}\n\n{lines}\n\
         More about this client: {}\nStatus page: http://{}/\n",
        client.page(),
        reachable(config.settings.listen.admin.0)
    )
}
