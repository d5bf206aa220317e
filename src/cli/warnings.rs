//! Warnings about settings that are valid but probably not intended. `check` prints them, `serve` logs them at start.
//! No warning shows a secret.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::unistd::{AccessFlags, access};

use crate::budget::{Budget, memory_limit};
use crate::catalogue::{Catalogue, Operation, Sharing};
use crate::certificate::{NotAfter, date};
use crate::config::enums::Mode;
use crate::config::secret::Secret;
use crate::config::{Config, Settings, Size};

/// The regions of Workspace. Source: the official Python SDK (huaweicloudsdkworkspace 3.1.219). New regions may be
/// missing.
const REGIONS: [&str; 18] = [
    "af-north-1",
    "af-south-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-southeast-3",
    "cn-east-3",
    "cn-east-5",
    "cn-north-11",
    "cn-north-4",
    "cn-north-9",
    "cn-south-1",
    "cn-southwest-2",
    "eu-west-101",
    "la-north-2",
    "la-south-2",
    "me-east-1",
    "sa-brazil-1",
    "tr-west-1",
];

/// The memory of the program, its tables and the allocator, in addition to the cache and the budget, in bytes. Source:
/// deploy/README.md.
const BASE_MEMORY: u64 = 96 << 20;

const READABLE_BY_OTHERS: u32 = 0o004;

/// All warnings. `file` is the configuration file.
pub(super) fn of(config: &Config, file: Option<&Path>) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(unknown_region(config));
    let limits = [memory_limit(Path::new("/")), memory_of_machine()];
    all.extend(too_little_memory(config, limits.into_iter().flatten().min()));
    all.extend(paths_as_secrets(config));
    all.extend(readable_secrets(config, file));
    all.extend(settings_without_engine(config));
    all.extend(engine_without_use(config));
    all.extend(tls_files_of_engine(config));
    all.extend(snapshot_folder(config));
    all
}

/// The settings of a fleet that have no effect, because there is no engine.
fn settings_without_engine(config: &Config) -> Option<String> {
    let fleet = &config.settings.fleet;
    let given = [
        ("secret", fleet.secret.is_some()),
        ("password", fleet.password.is_some()),
        ("ca_file", fleet.ca_file.is_some()),
        ("cert_file", fleet.cert_file.is_some()),
        ("key_file", fleet.key_file.is_some()),
        ("insecure_plaintext", fleet.insecure_plaintext.0),
    ];
    let given: Vec<_> =
        given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| format!("fleet.{name}")).collect();
    let verb = if given.len() == 1 { "has" } else { "have" };
    (fleet.engine.is_none() && !given.is_empty()).then(|| {
        format!(
            "{} {verb} no effect without fleet.engine: responses are not shared with other gateways",
            given.join(", ")
        )
    })
}

/// A warning if gateways share no responses although there is an engine.
fn engine_without_use(config: &Config) -> Option<String> {
    config.fleet.as_ref()?;
    if config.settings.mode == Mode::Bypass {
        return Some("fleet.engine: has no effect with mode = \"bypass\"".to_owned());
    }
    let is_shared = |operation: &Arc<Operation>| operation.sharing == Sharing::Project;
    (!config.catalogue.operations().iter().any(is_shared)).then(|| {
        "fleet.engine: no responses are shared with other gateways, because no operation has sharing = \"project\""
            .to_owned()
    })
}

/// A warning if the engine cannot be used because of a file. It may come later.
fn tls_files_of_engine(config: &Config) -> Option<String> {
    let error = config.fleet.as_ref()?.check_tls_files().err()?;
    Some(format!("{error}: the engine is not used before it can be read"))
}

/// A warning if no snapshot can be written because of its folder.
fn snapshot_folder(config: &Config) -> Option<String> {
    let path = config.settings.cache.snapshot.as_deref()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let shown = folder.display();
    if path.is_dir() {
        return Some(format!("cache.snapshot: {} is a folder: expected the path of a file", path.display()));
    }
    if !folder.is_dir() {
        return Some(format!("cache.snapshot: there is no folder {shown}, so nothing is kept over a restart"));
    }
    let may_write = access(folder, AccessFlags::W_OK | AccessFlags::X_OK);
    let error = may_write.err()?;
    Some(format!(
        "cache.snapshot: the folder {shown} is not writable ({}), so nothing is kept over a restart",
        error.desc()
    ))
}

/// The warning begins so long before the certificate expires: 14 days.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The warning about the server certificate, if it has expired, expires soon or cannot be read.
pub(super) fn certificate(not_after: Option<NotAfter>, now: SystemTime) -> Option<String> {
    let seconds = match not_after? {
        NotAfter::At(seconds) => seconds,
        NotAfter::Unknown => {
            return Some(
                "listen.cert_file: the expiry date of the certificate cannot be read, so there will be no warning before it: \
                 expected an X.509 certificate (RFC 5280) in PEM"
                    .to_owned(),
            );
        }
    };
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or_default());
    let date = date(seconds);
    match end.duration_since(now) {
        Err(_) => Some(format!("listen.cert_file: the certificate expired on {date}: clients refuse it")),
        Ok(left) if left < EXPIRY_WARNING => {
            let days = left.as_secs() / (24 * 60 * 60);
            Some(format!("listen.cert_file: the certificate expires on {date}, in {days} days: renew it"))
        }
        Ok(_) => None,
    }
}

/// The memory of this machine, in bytes. Source: `MemTotal` in `/proc/meminfo` (proc_meminfo(5)).
fn memory_of_machine() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The URLs of upstreams beyond loopback that use plaintext.
pub(super) fn plaintext_upstreams(catalogue: &Catalogue) -> impl Iterator<Item = String> {
    let origins = catalogue.services().map(|service| catalogue.origin(service));
    let in_the_clear = origins.filter(|origin| origin.is_plaintext() && !is_this_machine(origin.authority().host()));
    in_the_clear.map(ToString::to_string)
}

fn is_this_machine(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn unknown_region(config: &Config) -> Option<String> {
    let upstream = &config.settings.upstream;
    let is_used = upstream.workspace_url.is_none() || upstream.appstream_url.is_none();
    let region = config.settings.region.as_ref().filter(|_| is_used)?.to_string();
    unknown_region_name(&region)
}

/// What is wrong with a region that is not known. A new one may be missing in the list.
pub(super) fn unknown_region_name(region: &str) -> Option<String> {
    if REGIONS.contains(&region) {
        return None;
    }
    let nearest = REGIONS.into_iter().min_by_key(|known| strsim::damerau_levenshtein(known, region))?;
    Some(format!("region: {region:?} is not a known region of Workspace; the nearest known one is {nearest:?}"))
}

/// The regions of Workspace that are known, for an error.
pub(super) fn known_regions() -> String {
    REGIONS.join(", ")
}

/// Rounded down.
fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn too_little_memory(config: &Config, limit: Option<u64>) -> Option<String> {
    let (cache, settings) = (config.settings.cache.max_size, &config.settings.limits);
    let budget = Budget::size(settings.memory.map(Size::bytes)) as u64;
    let needed = cache.0.saturating_add(budget).saturating_add(BASE_MEMORY);
    let limit = limit.filter(|limit| *limit < needed)?;
    Some(format!(
        "cache.max_size ({}), limits.memory ({}) and {} for the program need {} together, but this process may use only {} \
         (its memory limit, or the memory of the machine) and may be killed: expected smaller sizes",
        mebibytes(cache.0),
        mebibytes(budget),
        mebibytes(BASE_MEMORY),
        mebibytes(needed),
        mebibytes(limit)
    ))
}

/// All secrets with the names of their settings.
fn secrets(settings: &Settings) -> impl Iterator<Item = (String, &Secret)> {
    let keys = settings.access_key.iter().flat_map(|entry| {
        let name = |field: &str| format!("access_key.{}.{field}", entry.id);
        let token = entry.security_token.as_ref().map(|token| (name("security_token"), token));
        [Some((name("secret"), &entry.secret)), token].into_iter().flatten()
    });
    let token = settings.listen.admin_token.as_ref().map(|token| ("listen.admin_token".to_owned(), token));
    let others = [
        ("fleet.secret", &settings.fleet.secret),
        ("fleet.password", &settings.fleet.password),
        ("otlp.headers", &settings.otlp.headers),
    ];
    let others = others.into_iter().filter_map(|(name, secret)| Some((name.to_owned(), secret.as_ref()?)));
    keys.chain(token).chain(others)
}

/// Secrets that look like the path of a file.
fn paths_as_secrets(config: &Config) -> impl Iterator<Item = String> {
    let is_path = |secret: &Secret| matches!(secret, Secret::Inline(text) if text.starts_with('/'));
    secrets(&config.settings).filter(move |(_, secret)| is_path(secret)).map(|(setting, _)| {
        format!(
            "{setting}: looks like a path, because it begins with \"/\": use {{ file = \"/…\" }} for a secret in a file"
        )
    })
}

fn readable_secrets(config: &Config, file: Option<&Path>) -> Vec<String> {
    let settings = &config.settings;
    let secrets = secrets(settings).filter_map(|(setting, secret)| match secret {
        Secret::File(path) => Some((setting, path.as_path())),
        Secret::Inline(_) => file.map(|file| (setting, file)),
        Secret::Environment(_) => None,
    });
    let key = settings.listen.key_file.as_deref().map(|path| ("listen.key_file".to_owned(), path));
    let readable = |path: &Path| {
        let metadata = std::fs::metadata(path);
        metadata.is_ok_and(|it| it.is_file() && it.permissions().mode() & READABLE_BY_OTHERS != 0)
    };
    let readable = secrets.chain(key).filter(|(_, path)| readable(path));
    readable
        .map(|(setting, path)| format!("{setting}: every user of this machine can read {}", path.display()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_warning_begins_14_days_before_it_expires() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let day = 24 * 60 * 60;
        for (left, expected) in [
            (-1, Some("expired on 2027-01-15T07:59:59Z")),
            (0, Some("expires on 2027-01-15T08:00:00Z, in 0 days")),
            (14 * day - 1, Some("in 13 days: renew it")),
            (14 * day, None),
        ] {
            let warning = certificate(Some(NotAfter::At(1_800_000_000 + left)), now);
            assert_eq!(warning.is_some(), expected.is_some(), "{left}: {warning:?}");
            assert!(warning.unwrap_or_default().contains(expected.unwrap_or_default()), "{left}");
        }
        assert_eq!(certificate(None, now), None);
        assert!(certificate(Some(NotAfter::Unknown), now).unwrap().contains("cannot be read"));
    }

    #[test]
    fn a_secret_that_looks_like_a_path_causes_a_warning_that_does_not_show_it() {
        for (secret, has_warning) in
            [("\"/run/secrets/sk\"", true), ("\"run/secrets\"", false), ("{ env = \"PATH\" }", false)]
        {
            let text = format!("region = \"cn-north-4\"\n[[access_key]]\nid = \"AK\"\nsecret = {secret}");
            let config = Config::from_layers("f", &text, &[]).unwrap();
            let warnings: Vec<_> = paths_as_secrets(&config).collect();
            assert_eq!(
                warnings.iter().any(|it| it.starts_with("access_key.AK.secret: looks like a path")),
                has_warning,
                "{secret}"
            );
            assert!(!warnings.concat().contains("secrets/sk"), "{warnings:?}");
        }
    }

    fn config(text: &str) -> Config {
        Config::from_layers("f", &format!("region = \"cn-north-4\"\n{text}"), &[]).unwrap()
    }

    #[test]
    fn settings_of_a_fleet_without_an_engine_cause_a_warning() {
        let secret = format!("secret = \"{}\"", "s".repeat(32));
        for (text, expected) in [
            (String::new(), None),
            (secret.clone(), Some("fleet.secret has no effect without fleet.engine")),
            (format!("{secret}\nca_file = \"ca.pem\""), Some("fleet.secret, fleet.ca_file have no effect")),
            (format!("{secret}\nengine = \"redis://127.0.0.1\""), None),
        ] {
            let warning = settings_without_engine(&config(&format!("[fleet]\n{text}")));
            assert_eq!(warning.is_some(), expected.is_some(), "{text}: {warning:?}");
            assert!(warning.unwrap_or_default().contains(expected.unwrap_or_default()), "{text}");
        }
    }

    #[test]
    fn an_engine_that_is_of_no_use_causes_a_warning() {
        let fleet = format!("[fleet]\nengine = \"rediss://a\"\nsecret = \"{}\"\n", "s".repeat(32));
        for (before, after, expected) in [
            ("", "", None),
            ("mode = \"bypass\"\n", "", Some("fleet.engine: has no effect with mode = \"bypass\"")),
            ("[cache]\nsharing = \"caller\"\n", "", Some("fleet.engine: no responses are shared")),
            ("", "ca_file = \"/nowhere/ca.pem\"", Some("fleet.ca_file: cannot read /nowhere/ca.pem: ")),
        ] {
            let config = config(&format!("{before}{fleet}{after}"));
            let warnings: Vec<_> =
                engine_without_use(&config).into_iter().chain(tls_files_of_engine(&config)).collect();
            assert_eq!(warnings.len(), usize::from(expected.is_some()), "{before}{after}: {warnings:?}");
            assert!(warnings.concat().contains(expected.unwrap_or_default()), "{before}{after}: {warnings:?}");
        }
    }

    #[test]
    fn a_snapshot_that_cannot_be_written_causes_a_warning() {
        for (path, expected) in [
            ("/tmp/snapshot", None),
            ("/tmp", Some("is a folder")),
            ("/nowhere/snapshot", Some("there is no folder /nowhere")),
            ("/proc/self/snapshot", Some("the folder /proc/self is not writable")),
        ] {
            let warning = snapshot_folder(&config(&format!("[cache]\nsnapshot = \"{path}\"")));
            assert_eq!(warning.is_some(), expected.is_some(), "{path}: {warning:?}");
            assert!(warning.unwrap_or_default().contains(expected.unwrap_or_default()), "{path}");
        }
    }

    #[test]
    fn sizes_above_the_memory_limit_cause_a_warning() {
        let config = config("[cache]\nmax_size = \"64MiB\"\n[limits]\nmemory = \"96MiB\"");
        for limit in [None, Some(256 << 20), Some(u64::MAX)] {
            assert_eq!(too_little_memory(&config, limit), None, "{limit:?}");
        }
        let warning = too_little_memory(&config, Some((256 << 20) - 1024)).unwrap();
        for part in
            ["cache.max_size (64 MiB)", "limits.memory (96 MiB)", "need 256 MiB together", "may use only 255 MiB"]
        {
            assert!(warning.contains(part), "{part}: {warning}");
        }
    }
}
