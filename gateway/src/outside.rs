//! Connections to the URLs that the configuration names: an issuer's keys, a collector of traces.
//!
//! Never for workers: those have connections of their own in `relay/upstream.rs`.

use std::time::Duration;

/// The longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// The longest wait for a whole answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A client that goes where the URL says and nowhere else: no proxy of the environment, no redirects.
pub fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .timeout(ANSWER)
        // Each request may run on another thread's reactor.
        .pool_max_idle_per_host(0)
        .build()
}
