//! One GET over the web, and which addresses it may lead to.
//!
//! Redirects are followed here by our own rules: never from a public address to a private one, never from `https` to
//! `http`, and the hub's token goes to the hub's own origin and nowhere else. It never retries and never reads a body.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use reqwest::{
    Client, ClientBuilder, Response, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{AUTHORIZATION, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE},
    redirect::Policy,
};
use secrecy::{ExposeSecret, SecretString};

use super::error::{Error, Result};

const MAX_REDIRECTS: usize = 10;
/// A site that cannot be connected to within this time is treated as out of reach.
const CONNECT: Duration = Duration::from_secs(5);

/// How far away an address is; what is farther never leads to what is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// This machine.
    Loopback,
    /// A private network.
    Private,
    /// Anywhere else.
    Public,
}

/// A GET to make.
#[derive(Debug)]
pub struct Ask<'a> {
    /// Where to begin.
    pub url: Url,
    /// How many bytes are here already.
    pub from: u64,
    /// What has to be unchanged for those bytes to fit.
    pub validator: Option<&'a str>,
}

/// A GET answered: the answer at the end of the redirects, and what the hub's own answers on the way said.
#[derive(Debug)]
pub struct Answer {
    /// The last answer, body unread.
    pub response: Response,
    /// The headers of each answer that came from the origin asked first.
    pub first_hand: Vec<HeaderMap>,
}

/// The means to make requests.
#[derive(Debug)]
pub struct Web {
    client: Client,
    /// The hub's origin and the token it gets.
    token: Option<(Url, SecretString)>,
}

impl Web {
    /// Ready to make requests; the token is sent to the origin of `hub` only.
    pub fn new(hub: &Url, token: Option<SecretString>) -> Result<Self> {
        Ok(Self {
            client: build(builder(), hub)?,
            token: token.map(|token| (hub.clone(), token)),
        })
    }

    /// Makes one GET and follows where it leads.
    pub async fn get(&self, ask: &Ask<'_>) -> Result<Answer> {
        is_allowed_by_name(&ask.url)
            .and_then(|()| is_allowed_by_number(&ask.url, Reach::Loopback))
            .map_err(|why| Error::Source {
                text: ask.url.to_string(),
                why,
            })?;
        let mut url = ask.url.clone();
        let mut response = self.hop(&self.client_for(&url)?, &url, ask).await?;
        let nearest = response
            .remote_addr()
            .and_then(|address| reach(address.ip()))
            .unwrap_or(Reach::Public);
        let guarded = build(builder().dns_resolver(Arc::new(Guard { nearest })), &url)?;
        let mut first_hand = vec![response.headers().clone()];
        for _ in 0..MAX_REDIRECTS {
            let Some(next) = redirect(&response) else {
                return Ok(Answer { response, first_hand });
            };
            let refuse = |why: String| Error::Redirect { host: host(&url), why };
            let next = next.map_err(refuse)?;
            if next.scheme() != url.scheme() && next.scheme() != "https" {
                return Err(refuse(format!("{} is not encrypted", host(&next))));
            }
            is_allowed_by_name(&next).map_err(refuse)?;
            is_allowed_by_number(&next, nearest).map_err(refuse)?;
            url = next;
            let client = if nearest == Reach::Loopback {
                self.client_for(&url)?
            } else {
                guarded.clone()
            };
            response = self.hop(&client, &url, ask).await?;
            if url.origin() == ask.url.origin() {
                first_hand.push(response.headers().clone());
            }
        }
        Err(Error::Redirect {
            host: host(&ask.url),
            why: format!("more than {MAX_REDIRECTS} redirects"),
        })
    }

    async fn hop(&self, client: &Client, url: &Url, ask: &Ask<'_>) -> Result<Response> {
        let mut request = client.get(url.clone());
        if let Some((hub, token)) = &self.token
            && hub.origin() == url.origin()
            && let Ok(mut bearer) = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
        {
            bearer.set_sensitive(true);
            request = request.header(AUTHORIZATION, bearer);
        }
        if ask.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.from));
            if let Some(validator) = ask.validator {
                request = request.header(IF_RANGE, validator);
            }
        }
        request.send().await.map_err(|error| unreachable(url, error))
    }

    /// Proxies of the environment serve for the world outside, never for this machine.
    fn client_for(&self, url: &Url) -> Result<Client> {
        if is_loopback(url) {
            build(builder().no_proxy(), url)
        } else {
            Ok(self.client.clone())
        }
    }
}

/// A URL's host and, where it is not the usual one, its port.
pub fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The error's chain without the URL, which may hold a signature.
pub fn unreachable(url: &Url, error: reqwest::Error) -> Error {
    let source: Box<dyn std::error::Error + Send + Sync> = if error.is_timeout() {
        "it does not answer".into()
    } else {
        error.without_url().into()
    };
    Error::Unreachable {
        host: host(url),
        source,
    }
}

/// How far away an address is; `None` for those that never serve a model: link-local (where clouds keep their
/// metadata), unspecified, multicast and reserved ones, also in their IPv6 disguises.
pub fn reach(address: IpAddr) -> Option<Reach> {
    match address {
        IpAddr::V4(v4) => reach_v4(v4),
        IpAddr::V6(v6) => match embedded(v6) {
            Some(v4) => reach_v4(v4),
            None if v6.is_loopback() => Some(Reach::Loopback),
            None if v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local() => None,
            None if v6.is_unique_local() => Some(Reach::Private),
            None => Some(Reach::Public),
        },
    }
}

fn reach_v4(v4: Ipv4Addr) -> Option<Reach> {
    let [a, b, ..] = v4.octets();
    match (a, b) {
        (127, _) => Some(Reach::Loopback),
        (0 | 224..=255, _) | (169, 254) => None,
        // Between a provider and its customers (RFC 6598).
        _ if v4.is_private() || matches!((a, b), (100, 64..=127)) => Some(Reach::Private),
        _ => Some(Reach::Public),
    }
}

/// The IPv4 address inside a v4-mapped, NAT64 or 6to4 one.
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        }
        _ => None,
    }
}

/// Resolves names, and leaves out the addresses that are nearer than the first answer came from.
struct Guard {
    nearest: Reach,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let nearest = self.nearest;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found
                .filter(|address| reach(address.ip()).is_some_and(|reach| reach >= nearest))
                .collect();
            if allowed.is_empty() {
                return Err(io::Error::other(format!("{} is a private address", name.as_str())).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

fn builder() -> ClientBuilder {
    Client::builder()
        .redirect(Policy::none())
        .connect_timeout(CONNECT)
        .user_agent(concat!("hivectl/", env!("CARGO_PKG_VERSION")))
}

fn build(builder: ClientBuilder, url: &Url) -> Result<Client> {
    builder.build().map_err(|error| unreachable(url, error))
}

fn redirect(response: &Response) -> Option<Result<Url, String>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|location| location.to_str().ok());
    Some(match location {
        Some(location) => response.url().join(location).map_err(|error| error.to_string()),
        None => Err("it does not say where to".into()),
    })
}

/// Only `https`, and `http` to this machine by one of its own names.
fn is_allowed_by_name(url: &Url) -> Result<(), String> {
    match url.scheme() {
        "https" => Ok(()),
        "http" if is_loopback(url) => Ok(()),
        "http" => Err(format!("{} would be spoken to unencrypted; use https", host(url))),
        scheme => Err(format!("{scheme} is not spoken here")),
    }
}

/// A host written as an address is never resolved, so it is judged here.
fn is_allowed_by_number(url: &Url, nearest: Reach) -> Result<(), String> {
    let Some(address) = address(url) else { return Ok(()) };
    match reach(address) {
        Some(reach) if reach >= nearest => Ok(()),
        _ => Err(format!("no model is fetched from the address {address} here")),
    }
}

fn address(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

fn is_loopback(url: &Url) -> bool {
    url.host_str() == Some("localhost") || address(url).is_some_and(|address| reach(address) == Some(Reach::Loopback))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn reach_of(address: &str) -> Option<Reach> {
        reach(address.parse().unwrap())
    }

    #[test]
    fn an_address_is_known_in_all_its_disguises() {
        for loopback in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert_eq!(reach_of(loopback), Some(Reach::Loopback), "{loopback}");
        }
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "fd00::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(reach_of(private), Some(Reach::Private), "{private}");
        }
        for public in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111"] {
            assert_eq!(reach_of(public), Some(Reach::Public), "{public}");
        }
        for never in [
            "169.254.169.254",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "fe80::1",
            "ff02::1",
            "::ffff:169.254.169.254",
        ] {
            assert_eq!(reach_of(never), None, "{never}");
        }
    }

    #[test]
    fn what_is_far_never_leads_to_what_is_near() {
        let allowed = |url: &str, nearest| is_allowed_by_number(&Url::parse(url).unwrap(), nearest).is_ok();
        assert!(allowed("https://1.1.1.1/x", Reach::Public));
        assert!(!allowed("https://10.0.0.1/x", Reach::Public));
        assert!(!allowed("https://127.0.0.1/x", Reach::Public));
        assert!(!allowed("https://[::ffff:127.0.0.1]/x", Reach::Private));
        assert!(allowed("https://10.0.0.2/x", Reach::Private));
        assert!(allowed("http://127.0.0.1:1/x", Reach::Loopback));
        assert!(!allowed("https://169.254.169.254/x", Reach::Loopback));
    }

    #[test]
    fn only_this_machine_is_spoken_to_unencrypted() {
        let allowed = |url: &str| is_allowed_by_name(&Url::parse(url).unwrap()).is_ok();
        assert!(allowed("https://example.org/x") && allowed("http://127.0.0.1:1/x") && allowed("http://localhost/x"));
        assert!(allowed("http://[::1]:1/x"));
        assert!(
            !allowed("http://example.org/x")
                && !allowed("http://10.0.0.1/x")
                && !allowed("http://127.0.0.1.example.org/x")
        );
    }

    #[tokio::test]
    async fn a_name_that_means_this_machine_is_not_resolved_for_a_public_site() {
        let resolve = |nearest| Guard { nearest }.resolve("localhost".parse().unwrap());
        assert!(resolve(Reach::Public).await.is_err());
        assert!(resolve(Reach::Loopback).await.unwrap().next().is_some());
    }
}
