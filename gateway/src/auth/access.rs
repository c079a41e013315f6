//! Who may call which route: one table for each plane, by which the router lets requests in and a test walks them.
//!
//! What is not in the table is not called by anybody, handler or not. A handler's own arguments say the same once more.

use axum::http::Method;
use wire::Scope;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Whoever holds a key or token with a scope that covers this one.
    Holder(Scope),
    /// A worker, by its join token or its own credential, at which the handler looks.
    Worker,
}

/// A method, a path as the router spells it, and who may call it. `HEAD` is `GET`.
pub type Route = (Method, &'static str, Access);

const INFER: Access = Access::Holder(Scope::Infer);
const MODELS: Access = Access::Holder(Scope::ModelsRead);
const ADMIN: Access = Access::Holder(Scope::Admin);
const AUDIT: Access = Access::Holder(Scope::AuditRead);

/// The data plane.
pub const DATA: &[Route] = &[
    (Method::POST, "/v1/chat/completions", INFER),
    (Method::POST, "/v1/completions", INFER),
    (Method::POST, "/v1/embeddings", INFER),
    (Method::GET, "/v1/models", MODELS),
    (Method::GET, "/v1/models/{*id}", MODELS),
    (Method::GET, "/healthz", Access::Open),
    (Method::GET, "/health", Access::Open),
    (Method::GET, "/readyz", Access::Open),
    (Method::GET, "/openapi.json", Access::Open),
    (Method::GET, "/docs", Access::Open),
    (Method::GET, "/docs/", Access::Open),
    (Method::GET, "/docs/{*rest}", Access::Open),
];

/// The control plane.
pub const CONTROL: &[Route] = &[
    (Method::GET, "/control/v1/workers", ADMIN),
    (Method::POST, "/control/v1/workers", ADMIN),
    (Method::GET, "/control/v1/workers/{id}", ADMIN),
    (Method::DELETE, "/control/v1/workers/{id}", ADMIN),
    (Method::POST, "/control/v1/workers/{id}/drain", ADMIN),
    (Method::POST, "/control/v1/workers/register", Access::Worker),
    (Method::POST, "/control/v1/workers/{id}/heartbeat", Access::Worker),
    (Method::POST, "/control/v1/workers/{id}/leave", Access::Worker),
    (
        Method::POST,
        "/control/v1/join-tokens",
        Access::Holder(Scope::WorkerJoin),
    ),
    (Method::GET, "/control/v1/models", ADMIN),
    (Method::GET, "/control/v1/keys", ADMIN),
    (Method::POST, "/control/v1/keys", ADMIN),
    (Method::GET, "/control/v1/keys/{id}", ADMIN),
    (Method::DELETE, "/control/v1/keys/{id}", ADMIN),
    (Method::POST, "/control/v1/keys/{id}/rotate", ADMIN),
    (Method::POST, "/control/v1/tokens/verify", ADMIN),
    (Method::POST, "/control/v1/tokens/revoke", ADMIN),
    (Method::GET, "/control/v1/requests", ADMIN),
    (Method::GET, "/control/v1/requests/{id}/explain", ADMIN),
    (Method::POST, "/control/v1/requests/{id}/cancel", ADMIN),
    (Method::GET, "/control/v1/usage", ADMIN),
    (Method::GET, "/control/v1/audit", AUDIT),
    (Method::GET, "/control/v1/audit/checkpoint", AUDIT),
    (Method::POST, "/control/v1/audit/export", ADMIN),
    (Method::POST, "/control/v1/audit/erase", ADMIN),
    (Method::POST, "/control/v1/audit/downloads", ADMIN),
    (Method::POST, "/control/v1/audit/prune", ADMIN),
    (Method::GET, "/metrics", Access::Holder(Scope::MetricsRead)),
    (Method::GET, "/healthz", Access::Open),
    (Method::GET, "/health", Access::Open),
    (Method::GET, "/readyz", Access::Open),
    (Method::GET, "/openapi.json", Access::Open),
    (Method::GET, "/docs", Access::Open),
    (Method::GET, "/docs/", Access::Open),
    (Method::GET, "/docs/{*rest}", Access::Open),
];

/// Who may call this method of this path; `None`: nobody.
pub fn access(table: &[Route], method: &Method, path: &str) -> Option<Access> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let found = table.iter().find(|(its, route, _)| its == method && *route == path);
    found.map(|(.., access)| *access)
}

/// The methods of a path, as the header `Allow` lists them.
pub fn allowed(table: &[Route], path: &str) -> String {
    let methods = table.iter().filter(|(_, route, _)| *route == path);
    let names = methods.map(|(method, ..)| {
        if *method == Method::GET {
            "GET,HEAD"
        } else {
            method.as_str()
        }
    });
    names.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_the_table_is_nobodys() {
        assert_eq!(access(CONTROL, &Method::GET, "/control/v1/keys"), Some(ADMIN));
        assert_eq!(access(DATA, &Method::HEAD, "/v1/models"), Some(MODELS));
        assert_eq!(access(DATA, &Method::HEAD, "/v1/chat/completions"), None);
        assert_eq!(access(CONTROL, &Method::PUT, "/control/v1/keys"), None);
        assert_eq!(access(DATA, &Method::GET, "/control/v1/keys"), None);
    }
}
