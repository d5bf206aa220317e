//! `fleet.engine`: the URL of an engine, and what is wrong with another text. An error shows no part of it that may be a
//! password.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

/// The forms of the URL, for an operator.
const ALLOWED: &str = "expected redis://HOST:PORT, redis-sentinel://HOST:PORT,HOST:PORT/MASTER or redis-cluster://HOST:PORT,HOST:PORT \
                       (with TLS rediss://, rediss-sentinel:// or rediss-cluster://), with USER@ before the hosts if there is a user";

impl FromStr for EngineUrl {
    type Err = String;

    /// # Errors
    /// The part that is wrong, and what is allowed.
    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map_err(|what| format!("{what}: {ALLOWED}"))
    }
}

fn parse(text: &str) -> Result<EngineUrl, String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("is no URL, because it has no scheme".to_owned());
    };
    let (is_tls, kind) = match scheme {
        "redis" => (false, Kind::Standalone),
        "rediss" => (true, Kind::Standalone),
        "redis-sentinel" => (false, Kind::Sentinel),
        "rediss-sentinel" => (true, Kind::Sentinel),
        "redis-cluster" => (false, Kind::Cluster),
        "rediss-cluster" => (true, Kind::Cluster),
        "valkey" | "valkeys" => {
            return Err(format!("the scheme {scheme}:// is not allowed, redis:// is also for Valkey"));
        }
        "http" | "https" | "tcp" | "unix" => return Err(format!("the scheme {scheme}:// is not allowed")),
        _ => return Err("the scheme (not shown, may be a secret) is not allowed".to_owned()),
    };
    // A password may contain a slash.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, _)) if user.contains(':') => {
            return Err("a password is not allowed in the URL, which is shown: set fleet.password".to_owned());
        }
        Some((user, rest)) if is_word(user) => (Some(user.to_owned()), rest),
        Some(_) => {
            return Err("the user before @ (not shown, may be a secret) is not one of A-Z a-z 0-9 _ - .".to_owned());
        }
        None => (None, rest),
    };
    let (hosts, path) = match rest.split_once('/') {
        Some((hosts, path)) => (hosts, Some(path)),
        None => (rest, None),
    };
    let default_port = if matches!(kind, Kind::Sentinel) { 26379 } else { 6379 };
    let hosts = hosts.split(',').map(|host| host_and_port(host, default_port)).collect::<Result<Vec<_>, _>>()?;
    let topology = match (kind, path) {
        (Kind::Sentinel, Some(master)) if is_word(master) => Topology::Sentinel { master: master.to_owned() },
        (Kind::Sentinel, None | Some("")) => return Err("the name of the master is missing after the hosts".to_owned()),
        (Kind::Sentinel, Some(_)) => return Err("the name of the master is not one of A-Z a-z 0-9 _ - .".to_owned()),
        (_, Some(path)) if is_number(path) => {
            return Err(format!("a database number (/{path}) is not allowed, gateways use database 0"));
        }
        (_, Some(path)) if !path.is_empty() => return Err("a path after the host is not allowed".to_owned()),
        (Kind::Standalone, _) if hosts.len() > 1 => {
            return Err("several hosts are only for Sentinels and clusters".to_owned());
        }
        (Kind::Standalone, _) => Topology::Standalone,
        (Kind::Cluster, _) => Topology::Cluster,
    };
    Ok(EngineUrl { topology, is_tls, user, hosts })
}

enum Kind {
    Standalone,
    Sentinel,
    Cluster,
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// Whether it is a number that is too short for a password.
fn is_number(text: &str) -> bool {
    (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn host_and_port(text: &str, default_port: u16) -> Result<(String, u16), String> {
    let no_host = || match text.is_empty() || text.starts_with(':') {
        true => "a host is missing".to_owned(),
        false => "a host is no name, no IPv4 address and no IPv6 address in brackets".to_owned(),
    };
    let is_address = |host: &str| host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6());
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').filter(|(host, _)| is_address(host)).ok_or_else(no_host)?,
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (Some(host).filter(|host| is_word(host)).ok_or_else(no_host)?, port)
        }
    };
    let port = match port.strip_prefix(':') {
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => port,
            _ if is_number(port) => return Err(format!("the port {port} is not from 1 to 65535")),
            _ => return Err("a port (not shown, may be a secret) is not from 1 to 65535".to_owned()),
        },
        None if port.is_empty() => default_port,
        None => return Err(no_host()),
    };
    Ok((host.to_owned(), port))
}

impl fmt::Display for EngineUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, path) = match &self.topology {
            Topology::Standalone => ("", String::new()),
            Topology::Sentinel { master } => ("-sentinel", format!("/{master}")),
            Topology::Cluster => ("-cluster", String::new()),
        };
        let scheme = if self.is_tls { "rediss" } else { "redis" };
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let host = |(host, port): &(String, u16)| match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let hosts: Vec<_> = self.hosts.iter().map(host).collect();
        write!(f, "{scheme}{kind}://{user}{}{path}", hosts.join(","))
    }
}

impl fmt::Debug for EngineUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl<'de> Deserialize<'de> for EngineUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = EngineUrl;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL such as \"redis://127.0.0.1:6379\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<EngineUrl, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text).map_err(D::Error::custom)
    }
}

impl Serialize for EngineUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
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
            ("rediss-sentinel://a/b", "rediss-sentinel://a:26379/b"),
            ("rediss-cluster://user@a,b:2", "rediss-cluster://user@a:6379,b:2"),
        ] {
            assert_eq!(text.parse::<EngineUrl>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn an_error_names_the_part_that_is_wrong_and_shows_no_password() {
        for (text, expected) in [
            ("", "is empty: "),
            ("127.0.0.1:6379", "is no URL"),
            ("swordfish", "is no URL"),
            ("valkey://host", "the scheme valkey:// is not allowed, redis:// is also for Valkey"),
            ("http://host", "the scheme http:// is not allowed"),
            ("swordfish://a", "the scheme (not shown"),
            ("redis-other://a", "the scheme (not shown"),
            ("redis://", "a host is missing"),
            ("redis://:6379", "a host is missing"),
            ("redis-cluster://a,", "a host is missing"),
            ("redis://a,b", "several hosts are only for Sentinels and clusters"),
            ("redis://host:0", "the port 0 is not from 1 to 65535"),
            ("redis://host:65536", "the port 65536 is not from 1 to 65535"),
            ("redis://host:", "a port (not shown"),
            ("redis://user:swordfish", "a port (not shown"),
            ("redis://host/3", "a database number (/3) is not allowed"),
            ("redis-cluster://host/3", "a database number (/3) is not allowed"),
            ("redis://host/swordfish", "a path after the host is not allowed"),
            ("redis://@host", "the user before @ (not shown"),
            ("redis://::1", "a host is missing"),
            ("redis://[host]", "a host is no name"),
            ("redis://[::1]7", "a host is no name"),
            ("redis-sentinel://a", "the name of the master is missing"),
            ("redis-sentinel://a/", "the name of the master is missing"),
            ("redis-sentinel://a/b/c", "the name of the master is not one of"),
            ("redis://user:swordfish@host", "a password is not allowed in the URL"),
            ("redis://user:sword/fish@host", "a password is not allowed in the URL"),
            ("redis://:swordfish@host", "a password is not allowed in the URL"),
        ] {
            let error = text.parse::<EngineUrl>().err().unwrap();
            assert!(error.starts_with(expected) && error.contains(": expected redis://"), "{text}: {error}");
            assert!(!error.contains("fish"), "{text}: {error}");
        }
    }
}
