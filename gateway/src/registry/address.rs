//! Where the gateway is willing to connect to: the operator's ranges, and some places never.
//!
//! It resolves no name and opens no connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Why an address was refused, with the remedy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is not an URL of the form we call.
    #[error("the url must look like http://ADDRESS:PORT, and name no user, path, query or fragment")]
    Shape,
    /// The host is a name.
    #[error("the url must name an IP address, not a host name")]
    NotAnAddress,
    /// Nobody may ever be called there.
    #[error(
        "{0} is a link-local, metadata, unspecified, multicast or embedded address; the gateway never connects there"
    )]
    Forbidden(IpAddr),
    /// The operator did not allow it.
    #[error("{0} is outside the ranges the gateway may connect to; add its network to `registry.allowed_cidrs`")]
    NotAllowed(IpAddr),
}

/// Checks one address against the forbidden ranges in every spelling, then against the operator's.
pub fn check(ip: IpAddr, allowed: &[IpNet]) -> Result<(), AddressError> {
    if is_forbidden(ip) {
        return Err(AddressError::Forbidden(ip));
    }
    if allowed.iter().any(|net| net.contains(&ip)) {
        Ok(())
    } else {
        Err(AddressError::NotAllowed(ip))
    }
}

/// The base URL a worker registered, with an unspecified host replaced by the address it called from.
pub fn worker_url(url: &str, peer: IpAddr, allowed: &[IpNet]) -> Result<String, AddressError> {
    let authority = url.strip_prefix("http://").ok_or(AddressError::Shape)?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.contains(['/', '?', '#', '@']) {
        return Err(AddressError::Shape);
    }
    let mut address: SocketAddr = authority.parse().map_err(|_| AddressError::NotAnAddress)?;
    if address.port() == 0 {
        return Err(AddressError::Shape);
    }
    if address.ip().is_unspecified() {
        address.set_ip(peer.to_canonical());
    }
    check(address.ip(), allowed)?;
    Ok(format!("http://{address}"))
}

fn is_forbidden(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_forbidden_v4(v4),
        IpAddr::V6(v6) => {
            // fd00:ec2::254 is Amazon's metadata service, in the midst of a private range.
            let metadata = v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
            v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local() || metadata || embeds_v4(v6)
        }
    }
}

fn is_forbidden_v4(ip: Ipv4Addr) -> bool {
    let [a, ..] = ip.octets();
    a == 0 || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast() || ip.octets() == [100, 100, 100, 200]
}

/// v4-mapped, v4-compatible, NAT64 (RFC 6052) and 6to4 (RFC 3056) addresses carry a v4 address past a v6 range.
fn embeds_v4(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let compatible = s[..6] == [0; 6] && !ip.is_loopback();
    compatible || ip.to_ipv4_mapped().is_some() || (s[0] == 0x64 && s[1] == 0xff9b) || s[0] == 0x2002
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn metadata_addresses_are_refused_in_every_spelling_even_if_allowed() {
        let everything = nets(&["0.0.0.0/0", "::/0"]);
        for ip in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "fd00:ec2::254",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "::ffff:127.0.0.1",
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(check(ip, &everything), Err(AddressError::Forbidden(ip)));
        }
    }

    #[test]
    fn only_the_operators_ranges_are_called() {
        let allowed = nets(&["127.0.0.0/8", "::1/128", "10.1.0.0/16"]);
        for ip in ["127.0.0.1", "127.9.9.9", "::1", "10.1.2.3"] {
            assert_eq!(check(ip.parse().unwrap(), &allowed), Ok(()));
        }
        let ip: IpAddr = "10.2.0.1".parse().unwrap();
        assert_eq!(check(ip, &allowed), Err(AddressError::NotAllowed(ip)));
    }

    #[test]
    fn a_worker_url_is_an_address_and_a_port() {
        let allowed = nets(&["127.0.0.0/8"]);
        let peer = "127.0.0.1".parse().unwrap();
        assert_eq!(
            worker_url("http://127.0.0.1:9/", peer, &allowed).unwrap(),
            "http://127.0.0.1:9"
        );
        assert_eq!(
            worker_url("http://0.0.0.0:9", peer, &allowed).unwrap(),
            "http://127.0.0.1:9"
        );
        for url in [
            "https://127.0.0.1:9",
            "http://127.0.0.1:9/x",
            "http://u@127.0.0.1:9",
            "http://127.0.0.1:0",
            "ftp://x",
        ] {
            assert_eq!(worker_url(url, peer, &allowed), Err(AddressError::Shape), "{url}");
        }
        for url in [
            "http://localhost:9",
            "http://2130706433:9",
            "http://127.1:9",
            "http://127.0.0.1",
        ] {
            assert_eq!(
                worker_url(url, peer, &allowed),
                Err(AddressError::NotAnAddress),
                "{url}"
            );
        }
    }
}
