//! A network of IP addresses, or a single address (`listen.shared_addresses`).

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// `192.0.2.0/24`, `2001:db8::/32`, or an address.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    /// The length of the prefix, in bits.
    prefix: u32,
}

impl Network {
    /// An IPv4 address may be given as an IPv4-mapped IPv6 address (`::ffff:192.0.2.1`).
    pub fn contains(&self, address: IpAddr) -> bool {
        let common = |one: u128, other: u128, bits: u32| {
            let differing = (one ^ other).leading_zeros() - (u128::BITS - bits);
            differing >= self.prefix
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(one), IpAddr::V4(other)) => common(one.to_bits().into(), other.to_bits().into(), u32::BITS),
            (IpAddr::V6(one), IpAddr::V6(other)) => common(one.to_bits(), other.to_bits(), u128::BITS),
            _ => false,
        }
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let read = || {
            let (address, prefix) =
                text.split_once('/').map_or((&*text, None), |(address, bits)| (address, Some(bits)));
            // An IPv4-mapped IPv6 address is refused, because `contains` compares canonical addresses.
            let address: IpAddr = address.parse().ok().filter(|address: &IpAddr| address.to_canonical() == *address)?;
            let bits = if address.is_ipv4() { u32::BITS } else { u128::BITS };
            let is_number = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
            let prefix = match prefix {
                None => bits,
                Some(prefix) => Some(prefix).filter(is_number)?.parse().ok().filter(|prefix| *prefix <= bits)?,
            };
            Some(Self { address, prefix })
        };
        read().ok_or_else(|| {
            format!(
                "{text:?} is not allowed: expected an IP address such as \"192.0.2.1\", or a network such as \
                 \"192.0.2.0/24\" or \"2001:db8::/32\""
            )
        })
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, prefix } = self;
        let bits = if address.is_ipv4() { u32::BITS } else { u128::BITS };
        if *prefix == bits { address.fmt(f) } else { write!(f, "{address}/{prefix}") }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Result<Network, String> {
        text.to_owned().try_into()
    }

    #[test]
    fn a_network_contains_the_addresses_with_its_prefix() {
        for (of, inside, outside) in [
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("192.0.2.1", "::ffff:192.0.2.1", "::192.0.2.1"),
            ("192.0.2.128/25", "192.0.2.255", "192.0.2.127"),
            ("10.1.2.3/8", "10.255.0.1", "11.0.0.1"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
        ] {
            let contains = |address: &str| network(of).unwrap().contains(address.parse().unwrap());
            assert!(contains(inside) && !contains(outside), "{of}");
        }
    }

    #[test]
    fn a_wrong_network_is_refused_with_what_is_allowed() {
        for text in [
            "",
            "host",
            "192.0.2.0/33",
            "192.0.2.0/",
            "192.0.2.0/+8",
            "192.0.2/24",
            "::/129",
            "1.2.3.4:5",
            "::1%lo",
            "::ffff:1.2.3.4",
        ] {
            let message = network(text).unwrap_err();
            assert!(message.starts_with(&format!("{text:?} is not allowed: expected an IP address")), "{message}");
        }
        for text in ["192.0.2.1", "192.0.2.0/24", "2001:db8::/32"] {
            assert_eq!(String::from(network(text).unwrap()), text);
        }
    }
}
