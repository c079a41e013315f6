//! The headers that routes which ask a worker read and write, for the OpenAPI document.

use utoipa::openapi::{
    Header, HeaderBuilder, ObjectBuilder, OpenApi, RefOr, Required, Response, Type,
    path::{ParameterBuilder, ParameterIn},
};

const ASKED: [(&str, Type, &str); 4] = [
    (
        "x-hive-deadline-ms",
        Type::Integer,
        "Milliseconds after which nobody wants the answer any more: then 504 `deadline_exceeded`, or an error event in a stream",
    ),
    (
        "x-request-id",
        Type::String,
        "Your own name for the request, in the logs of both sides: up to 128 letters, digits and `._-:`",
    ),
    (
        "x-session-id",
        Type::String,
        "Which conversation it belongs to, so that it goes to the worker that has its beginning in its cache",
    ),
    (
        "traceparent",
        Type::String,
        "Your span (W3C Trace Context), the parent of ours where traces are sent",
    ),
];
const ANSWERED: [(&str, Type, &str); 6] = [
    (
        "x-request-id",
        Type::String,
        "The request's name in the logs: yours, or one of ours",
    ),
    (
        "openai-processing-ms",
        Type::Integer,
        "Milliseconds until the headers were sent",
    ),
    (
        "x-hive-worker",
        Type::String,
        "The worker that answers, if one is known when the headers are sent",
    ),
    (
        "x-hive-route",
        Type::String,
        "How it was found, for keys with the scope `metrics:read`",
    ),
    (
        "x-hive-ignored-params",
        Type::String,
        "The parameters that had no effect, separated by commas",
    ),
    (
        "x-ratelimit-remaining-tokens",
        Type::Integer,
        "What is left of the key's tokens in this minute, if it has such a limit; with `limit` and `reset`, and the same for `requests`",
    ),
];
const RETRY_AFTER: (&str, Type, &str) = ("retry-after", Type::Integer, "Seconds, at most 60");

/// Adds them to the routes of these paths.
pub fn tell<'a>(document: &mut OpenApi, paths: impl IntoIterator<Item = &'a str>) {
    for path in paths {
        let route = document.paths.paths.get_mut(path);
        let Some(operation) = route.and_then(|route| route.post.as_mut()) else {
            continue;
        };
        let asked = ASKED.map(|(name, kind, text)| {
            let parameter = ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some(text))
                .schema(Some(ObjectBuilder::new().schema_type(kind)));
            RefOr::T(parameter.build())
        });
        operation.parameters.get_or_insert_default().extend(asked);
        for (status, response) in &mut operation.responses.responses {
            let RefOr::T(response) = response else { continue };
            match status.as_str() {
                "200" => ANSWERED.into_iter().for_each(|header| add(response, header)),
                "429" | "503" => add(response, RETRY_AFTER),
                _ => {}
            }
        }
    }
}

fn add(response: &mut Response, (name, kind, text): (&str, Type, &str)) {
    let header: Header = HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(kind)))
        .description(Some(text))
        .build();
    response.headers.insert(name.to_owned(), RefOr::T(header));
}
