//! The part of a client's address that distinguishes clients.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 address, or an IPv6 /64 network, because a host can take any address in its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    V4(Ipv4Addr),
    /// The first 64 bits of an address.
    V6(u64),
}

impl Peer {
    /// `None` for loopback, because all programs on this machine have the same address.
    pub fn of(address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        if address.is_loopback() {
            return None;
        }
        Some(match address {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6(network(address)),
        })
    }
}

fn network(address: Ipv6Addr) -> u64 {
    // Cannot fail: the upper half of 128 bits has 64 bits.
    u64::try_from(address.to_bits() >> 64).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> Option<Peer> {
        Peer::of(address.parse().unwrap())
    }

    #[test]
    fn a_peer_is_an_ipv4_address_or_a_64_bit_network() {
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:0:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }

    #[test]
    fn loopback_addresses_are_no_peer() {
        for address in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(of(address), None, "{address}");
        }
    }
}
