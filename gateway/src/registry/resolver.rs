//! The addresses of attached servers: a name is resolved once, checked, and keeps its addresses until it is attached anew.
//!
//! Otherwise whoever answers for the name could send the gateway anywhere later on. It opens no connection.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use hyper_util::client::legacy::connect::dns;
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::address::{self, AddressError};

/// Why a name has no address we may call.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Nobody knows it.
    #[error("the name {0} cannot be resolved; check it, or use an address")]
    Unknown(String, #[source] io::Error),
    /// It stands for an address the gateway does not call.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Resolves names, and remembers.
#[derive(Debug)]
pub struct Resolver {
    allowed: Vec<IpNet>,
    pinned: Mutex<HashMap<String, Vec<IpAddr>>>,
}

impl Resolver {
    /// A resolver that gives out addresses inside the operator's ranges only.
    pub fn new(allowed: Vec<IpNet>) -> Self {
        let pinned = Mutex::default();
        Self { allowed, pinned }
    }

    /// Asks for a name anew; all its addresses must be such as we may call, and they hold from now on.
    pub async fn pin(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let found = tokio::net::lookup_host((name, 0)).await;
        let found = found.map_err(|error| ResolveError::Unknown(name.to_owned(), error))?;
        let addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
        for ip in &addresses {
            address::check(*ip, &self.allowed)?;
        }
        self.lock().insert(name.to_owned(), addresses.clone());
        Ok(addresses)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<IpAddr>>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`Resolver`] as HTTP clients ask it, reqwest's and hyper's.
#[derive(Debug, Clone)]
pub struct Pinned(pub std::sync::Arc<Resolver>);

impl Pinned {
    fn addresses(&self, name: String) -> Resolving {
        let resolver = self.0.clone();
        Box::pin(async move {
            let held = resolver.lock().get(&name).cloned();
            let addresses = match held {
                Some(addresses) => addresses,
                None => resolver.pin(&name).await?,
            };
            // The client puts the URL's own port in place of 0.
            Ok(Box::new(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

impl Resolve for Pinned {
    fn resolve(&self, name: Name) -> Resolving {
        self.addresses(name.as_str().to_owned())
    }
}

impl tower::Service<dns::Name> for Pinned {
    type Response = Addrs;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Resolving;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: dns::Name) -> Resolving {
        self.addresses(name.as_str().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn resolver(allowed: &str) -> Arc<Resolver> {
        Arc::new(Resolver::new(vec![allowed.parse().unwrap()]))
    }

    async fn ask(resolver: &Arc<Resolver>, name: &str) -> Result<Vec<IpAddr>, String> {
        let found = Pinned(resolver.clone()).resolve(name.parse().unwrap()).await;
        found
            .map(|addresses| addresses.map(|address| address.ip()).collect())
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_name_keeps_the_address_it_was_attached_with() {
        let resolver = resolver("192.0.2.0/24");
        let first = vec!["192.0.2.7".parse().unwrap()];
        resolver.lock().insert("localhost".into(), first.clone());
        assert_eq!(ask(&resolver, "localhost").await, Ok(first));
    }

    #[tokio::test]
    async fn a_name_that_stands_for_a_place_we_may_not_call_is_no_address() {
        let error = ask(&resolver("192.0.2.0/24"), "localhost").await.unwrap_err();
        assert!(error.contains("registry.allowed_cidrs"), "{error}");
        let error = ask(&resolver("192.0.2.0/24"), "no-such-name.invalid")
            .await
            .unwrap_err();
        assert!(error.contains("no-such-name.invalid"), "{error}");
    }
}
