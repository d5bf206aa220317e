//! The overlay `fleet` of `deploy/kustomize`: an engine with the `valkey.conf` and the secrets that deploy/README.md makes,
//! and a gateway with the `config.toml`, work together.

use std::path::Path;
use std::process::Command;

use crate::support::engine::{Engine, redis};
use crate::support::process::folder;
use crate::support::tls::Authority;

const VALKEY_CONF: &str = include_str!("../deploy/kustomize/valkey/valkey.conf");
const CONFIG_TOML: &str = include_str!("../deploy/kustomize/overlays/fleet/config.toml");

/// A file of a ConfigMap, with other paths and names in it.
fn file(text: &str, replaced: &[(&str, &str)]) -> String {
    replaced.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "no {from} in {text}");
        text.replace(from, to)
    })
}

/// Runs the commands of deploy/README.md that make the secrets, with a certificate for `localhost`.
fn make_secrets(folder: &Path) {
    let (_, guide) = include_str!("../deploy/README.md").split_once("### Fleet\n").unwrap();
    let (_, commands) = guide.split_once("```sh\n").unwrap();
    let (commands, _) = commands.split_once("kubectl ").unwrap();
    let commands = commands.replace("workspace-gateway-valkey", "localhost");
    let output = Command::new("sh").args(["-e", "-c", &commands]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn the_engine_and_the_gateways_of_the_manifest_work_together() {
    let (secrets, of_engine) = (folder("fleet-manifest"), folder("fleet-manifest-engine"));
    make_secrets(&secrets);
    std::fs::rename(secrets.join("users.acl"), of_engine.join("users.acl")).unwrap();
    std::fs::rename(secrets.join("ca.crt"), secrets.join("engine-ca.crt")).unwrap();
    for (made, name) in [("valkey.crt", "tls.crt"), ("valkey.key", "tls.key")] {
        std::fs::rename(secrets.join(made), of_engine.join(name)).unwrap();
    }
    // For the clients of the gateway.
    let identity = Authority::new().issue("localhost");
    std::fs::write(secrets.join("tls.crt"), identity.certificate).unwrap();
    std::fs::write(secrets.join("tls.key"), identity.key).unwrap();
    let in_folder = |folder: &Path| format!("{}/", folder.display());
    let settings = of_engine.join("valkey.conf");
    std::fs::write(&settings, file(VALKEY_CONF, &[("/run/secrets/valkey/", &in_folder(&of_engine))])).unwrap();
    let arguments = [settings.to_str().unwrap(), "--tls-port", "PORT"];
    let Some(mut engine) = redis("manifest", &arguments).await else { return };

    let host = format!("localhost:{}", engine.port);
    let replaced =
        [("/run/secrets/workspace-gateway/", &*in_folder(&secrets)), ("workspace-gateway-valkey:6379", &*host)];
    let config = secrets.join("config.toml");
    std::fs::write(&config, file(CONFIG_TOML, &replaced)).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_workspace-gateway"));
    let output = check.args(["check", "--fleet", "--config"]).arg(&config).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(" can be used: a look-up takes "), "{text}");

    assert_eq!(run(&mut engine, &secrets, &[], "PING").await, "NOAUTH Authentication required.");
    let password = std::fs::read_to_string(secrets.join("engine-password")).unwrap();
    let login = ["--no-auth-warning", "--user", "gateway", "--pass", &password];
    assert_eq!(run(&mut engine, &secrets, &login, "TIME").await.lines().count(), 2);
    for command in ["KEYS *", "FLUSHALL", "CONFIG GET *", "GET other"] {
        assert!(run(&mut engine, &secrets, &login, command).await.starts_with("NOPERM "), "{command}");
    }
}

/// Runs a command of the engine with this login.
async fn run(engine: &mut Engine, secrets: &Path, login: &[&str], command: &str) -> String {
    let ca = secrets.join("engine-ca.crt").display().to_string();
    engine.login = ["--tls", "--cacert", &ca].into_iter().chain(login.iter().copied()).map(str::to_owned).collect();
    let words: Vec<_> = command.split(' ').collect();
    engine.run(&words).await
}

#[test]
fn the_user_of_the_engine_has_the_rights_that_the_guide_names() {
    let (_, of_manifest) = include_str!("../deploy/README.md").split_once("user gateway reset on #%s %s\\n'").unwrap();
    let (_, of_manifest) = of_manifest.split_once("'~wg2:*").unwrap();
    let of_manifest: Vec<&str> = of_manifest.split('\'').next().unwrap().split_whitespace().collect();
    let commands = include_str!("../deploy/fleet.md").lines().map(str::trim);
    let rights = commands.filter_map(|line| line.strip_prefix("ACL SETUSER gateway"));
    let rights: Vec<&str> = rights
        .map(|rights| rights.split_once("~wg2:*").map_or(rights, |(_, rights)| rights))
        .flat_map(str::split_whitespace)
        .collect();
    assert_eq!(of_manifest, rights);
}
