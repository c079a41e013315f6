//! `[server]` and `[control]`: where the two planes listen, by which certificates, and within which bounds.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use axum::http::Uri;
use ipnet::IpNet;
use serde::Deserialize;

use super::{credential, duration};

/// `[server]`: the data plane and the connections of both planes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address of the data plane.
    pub listen: SocketAddr,
    /// The data plane's certificate, in PEM; with one, it speaks TLS alone.
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Threads that serve the data plane; 0: one per core.
    pub threads: usize,
    /// Host names beyond the loopback ones that the `Host` header may hold on a loopback bind.
    pub allowed_hosts: Vec<String>,
    /// Connections at once, of each plane.
    pub max_connections: usize,
    /// Connections at once from one IPv4 address or one IPv6 network of 64 bits, other than loopback and proxies.
    pub max_connections_per_address: usize,
    /// Networks of the proxies before it: many people come from each of their addresses.
    pub trusted_proxies: Vec<IpNet>,
    /// Silence before the first byte of a connection, and time for a request's head.
    #[serde(deserialize_with = "duration")]
    pub head_timeout: Duration,
    /// How long a connection without a request is kept.
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Duration,
    /// Time for a request's whole body.
    #[serde(deserialize_with = "duration")]
    pub body_timeout: Duration,
    /// How long running answers may go on after SIGTERM.
    #[serde(deserialize_with = "duration")]
    pub drain_timeout: Duration,
}

/// `[control]`: the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Address of the control plane.
    pub listen: SocketAddr,
    /// The control plane's certificate, in PEM; with one, it speaks TLS alone.
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Host names beyond the loopback ones that the `Host` header may hold.
    pub allowed_hosts: Vec<String>,
    /// The control plane's URL as workers on other machines reach it.
    pub advertise_url: Option<String>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7411)),
            tls_cert: None,
            tls_key: None,
            threads: 0,
            allowed_hosts: Vec::new(),
            max_connections: 10_000,
            max_connections_per_address: 256,
            trusted_proxies: Vec::new(),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(120),
        }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7412)),
            tls_cert: None,
            tls_key: None,
            allowed_hosts: Vec::new(),
            advertise_url: None,
        }
    }
}

impl Control {
    /// The host names it answers for beyond the loopback ones: those allowed, and the one it tells workers to use.
    pub fn hosts(&self) -> Vec<String> {
        let advertised = self.advertise_url.as_deref().and_then(|url| url.parse::<Uri>().ok());
        let advertised = advertised.as_ref().and_then(Uri::host).map(str::to_owned);
        // One specific address is a name it is called by, too.
        let own = Some(self.listen.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
        let own = own.map(|ip| {
            if ip.is_ipv6() {
                format!("[{ip}]")
            } else {
                ip.to_string()
            }
        });
        self.allowed_hosts
            .iter()
            .cloned()
            .chain(advertised)
            .chain(own)
            .collect()
    }
}

/// Every value of the two that makes no sense.
pub(super) fn faults(server: &Server, control: &Control) -> Vec<String> {
    let mut faults = Vec::new();
    let mut need = |good: bool, fault: &str| {
        if !good {
            faults.push(fault.to_owned());
        }
    };
    need(server.max_connections > 0, "server.max_connections: must be at least 1");
    need(
        server.max_connections_per_address > 0,
        "server.max_connections_per_address: must be at least 1",
    );
    need(
        server.trusted_proxies.iter().all(|net| net.prefix_len() > 0),
        "server.trusted_proxies: a network of all addresses leaves no limit; name the proxies, or raise server.max_connections_per_address",
    );
    need(
        !server.head_timeout.is_zero(),
        "server.head_timeout: must be longer than 0s",
    );
    need(
        !server.idle_timeout.is_zero(),
        "server.idle_timeout: must be longer than 0s",
    );
    need(
        !server.body_timeout.is_zero(),
        "server.body_timeout: must be longer than 0s",
    );
    need(
        control
            .advertise_url
            .as_deref()
            .is_none_or(|url| url.starts_with("http://") || url.starts_with("https://")),
        "control.advertise_url: must begin with http:// or https://",
    );
    for (plane, certificate, key) in [
        ("server", &server.tls_cert, &server.tls_key),
        ("control", &control.tls_cert, &control.tls_key),
    ] {
        if certificate.is_some() != key.is_some() {
            faults.push(format!(
                "{plane}.tls_cert, {plane}.tls_key: must be set together, or neither"
            ));
        }
        let mut named = [certificate, key].into_iter().flatten();
        if named.any(|path| !path.is_absolute() && credential(path).is_none()) {
            faults.push(format!(
                "{plane}.tls_cert, {plane}.tls_key: must be absolute paths, or credential:NAME"
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::{super::parse, Control};

    #[test]
    fn proxies_are_some_networks_and_not_all_addresses() {
        let of = |net: &str| parse(&format!("[server]\ntrusted_proxies = [\"{net}\"]"), None, &[]);
        assert!(of("10.0.0.3").is_err(), "a network has a length");
        assert!(of("10.0.0.3/32").unwrap().validate().is_ok());
        let error = of("0.0.0.0/0").unwrap().validate().unwrap_err().to_string();
        assert!(error.contains("server.trusted_proxies"), "{error}");
    }

    #[test]
    fn the_control_plane_answers_for_the_name_it_advertises() {
        let hosts = |url| {
            let text = format!("[control]\nallowed_hosts = [\"hive\"]\nadvertise_url = \"{url}\"");
            parse(&text, None, &[]).unwrap().control.hosts()
        };
        assert_eq!(hosts("http://10.0.0.7:7412"), ["hive", "10.0.0.7"]);
        assert_eq!(hosts("https://[fd00::1]:7412/"), ["hive", "[fd00::1]"]);
        assert_eq!(Control::default().hosts(), [""; 0]);
    }
}
