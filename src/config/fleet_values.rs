//! The values of `[fleet]`: their forms, and what errors say is allowed.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::units::{Size, Span, written_as_text};

/// Where the engine is: `rediss://user@host:6379` and the like.
#[derive(Clone, PartialEq, Eq)]
pub struct EngineUrl {
    pub(crate) topology: Topology,
    pub(crate) is_tls: bool,
    pub(crate) user: Option<String>,
    /// At least one host, with its port.
    pub(crate) hosts: Vec<(String, u16)>,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Topology {
    Standalone,
    /// The hosts are Sentinels, which know the master by this name.
    Sentinel {
        master: String,
    },
    /// The hosts are some nodes of the cluster.
    Cluster,
}

/// The name of a fleet, which is a part of the names of its keys.
#[derive(Clone, PartialEq, Eq)]
pub struct FleetName(pub String);

written_as_text!(
    EngineUrl,
    "a URL without a password, such as \"redis://127.0.0.1:6379\", \"rediss://user@host:6379\", \
     \"redis-sentinel://a:26379,b:26379/master\" or \"redis-cluster://a:6379,b:6379\" (rediss-… with TLS)",
    parse,
    show
);

written_as_text!(
    FleetName,
    "1 to 32 of A-Z a-z 0-9 _ -",
    |text| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        ((1..=32).contains(&text.len()) && text.bytes().all(is_plain)).then(|| FleetName(text.to_owned()))
    },
    |name| name.0.clone()
);

/// The gateway waits no longer for a second tier.
const MAX_BUDGET: Duration = Duration::from_millis(8);

/// Larger values make the engine slow for everybody.
const LARGEST_BODY: Size = Size(8 << 20);

/// `fleet.budget`: how long a request waits for the engine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LookUpBudget(pub Duration);

written_as_text!(
    LookUpBudget,
    "a duration from 1ms to 8ms, such as \"5ms\"",
    |text| text.parse::<Span>().ok().filter(|span| span.0 <= MAX_BUDGET).map(|span| LookUpBudget(span.0)),
    |budget| Span(budget.0).to_string()
);

/// More polls than this asks for would burden the engine. With a longer time, denials at other gateways come too late.
const SYNC_TIMES: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(10);

/// `fleet.sync`: after so long without the log, a gateway does not rely on what others have proved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SyncTime(pub Duration);

written_as_text!(
    SyncTime,
    "a duration from 200ms to 10s, such as \"1s\"",
    |text| text.parse::<Span>().ok().filter(|span| SYNC_TIMES.contains(&span.0)).map(|span| SyncTime(span.0)),
    |sync| Span(sync.0).to_string()
);

/// `fleet.max_body_size`: the largest body that is stored in the engine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SharedSize(pub Size);

written_as_text!(
    SharedSize,
    "a size from 1B to 8MiB, such as \"1MiB\"",
    |text| text.parse::<Size>().ok().filter(|size| size.0 <= LARGEST_BODY.0).map(SharedSize),
    |size| size.0.to_string()
);

fn parse(text: &str) -> Option<EngineUrl> {
    let (scheme, rest) = text.split_once("://")?;
    let (is_tls, kind) = match scheme.strip_prefix("rediss") {
        Some(kind) => (true, kind),
        None => (false, scheme.strip_prefix("redis")?),
    };
    let (rest, path) = match rest.split_once('/') {
        Some((rest, path)) => (rest, Some(path)),
        None => (rest, None),
    };
    let (user, hosts) = match rest.rsplit_once('@') {
        // A password must not be in a URL, which is shown.
        Some((user, hosts)) => (Some(user).filter(|user| is_word(user)).map(Some)?, hosts),
        None => (None, rest),
    };
    let default_port = if kind == "-sentinel" { 26379 } else { 6379 };
    let hosts = hosts.split(',').map(|host| host_and_port(host, default_port)).collect::<Option<Vec<_>>>()?;
    let topology = match (kind, path) {
        ("", None | Some("")) if hosts.len() == 1 => Topology::Standalone,
        ("-cluster", None | Some("")) => Topology::Cluster,
        ("-sentinel", Some(master)) if is_word(master) => Topology::Sentinel { master: master.to_owned() },
        _ => return None,
    };
    Some(EngineUrl { topology, is_tls, user: user.map(str::to_owned), hosts })
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

fn host_and_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let is_address = |host: &str| host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6());
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').filter(|(host, _)| is_address(host))?,
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (Some(host).filter(|host| is_word(host))?, port)
        }
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port > 0)?,
        None if port.is_empty() => default_port,
        None => return None,
    };
    Some((host.to_owned(), port))
}

fn show(url: &EngineUrl) -> String {
    let (kind, path) = match &url.topology {
        Topology::Standalone => ("", String::new()),
        Topology::Sentinel { master } => ("-sentinel", format!("/{master}")),
        Topology::Cluster => ("-cluster", String::new()),
    };
    let scheme = if url.is_tls { "rediss" } else { "redis" };
    let user = url.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
    let host = |(host, port): &(String, u16)| match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let hosts: Vec<_> = url.hosts.iter().map(host).collect();
    format!("{scheme}{kind}://{user}{}{path}", hosts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_engines_are_read_and_shown() {
        for (text, shown) in [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379"),
            ("rediss://gateway@valkey.example:6380", "rediss://gateway@valkey.example:6380"),
            ("redis://[::1]:7000/", "redis://[::1]:7000"),
            ("redis-sentinel://a,b:1,c/mymaster", "redis-sentinel://a:26379,b:1,c:26379/mymaster"),
            ("rediss-cluster://user@a,b:2", "rediss-cluster://user@a:6379,b:2"),
        ] {
            assert_eq!(text.parse::<EngineUrl>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn other_urls_are_refused_without_showing_a_password() {
        for text in [
            "127.0.0.1:6379",
            "http://host",
            "redis://",
            "redis://a,b",
            "redis://host:0",
            "redis://host:65536",
            "redis://host/3",
            "redis://@host",
            "redis://::1",
            "redis://[host]",
            "redis-sentinel://a",
            "redis-sentinel://a/",
            "redis-other://a",
            "redis://user:swordfish@host",
        ] {
            let error = text.parse::<EngineUrl>().err().unwrap();
            assert!(error.contains("expected a URL without a password") && !error.contains("swordfish"), "{error}");
        }
    }
}
