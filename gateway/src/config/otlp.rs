//! `[otlp]`: where OpenTelemetry traces go, and how many.

use std::{io, path::PathBuf};

use axum::http::{HeaderName, HeaderValue, Uri};
use secrecy::ExposeSecret as _;
use serde::Deserialize;

use crate::secret_file;

/// `[otlp]`: traces, by the OpenTelemetry protocol over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    /// The collector's base URL; without one no request is traced.
    pub endpoint: Option<String>,
    /// A file with one header for the collector, `name: value`, which only its owner can read.
    pub header_file: Option<PathBuf>,
    /// Of a hundred requests, how many are traced, where the client's `traceparent` does not say.
    pub percent: u8,
}

impl Default for Otlp {
    fn default() -> Self {
        Self {
            endpoint: None,
            header_file: None,
            percent: 100,
        }
    }
}

impl Otlp {
    /// Every value that makes no sense.
    pub(super) fn faults(&self) -> Vec<&'static str> {
        let is_url = |text: &String| {
            let url = text.parse::<Uri>().ok();
            url.is_some_and(|url| matches!(url.scheme_str(), Some("http" | "https")) && url.query().is_none())
        };
        let rules = [
            (
                !self.endpoint.as_ref().is_none_or(is_url),
                "otlp.endpoint: must be the collector's base URL, like http://127.0.0.1:4318",
            ),
            (self.percent > 100, "otlp.percent: must be a number from 0 to 100"),
        ];
        rules
            .into_iter()
            .filter_map(|(bad, fault)| bad.then_some(fault))
            .collect()
    }

    /// The header in `header_file`; an error if it cannot be read, or others can.
    pub fn header(&self) -> io::Result<Option<(HeaderName, HeaderValue)>> {
        let Some(path) = &self.header_file else {
            return Ok(None);
        };
        let line = secret_file::read(path)?;
        let header = line.expose_secret().split_once(':').and_then(|(name, value)| {
            let mut value = HeaderValue::from_str(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name.trim()).ok()?, value))
        });
        let unfit = || format!("{}: it must hold one header, `name: value`", path.display());
        header
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, unfit()))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::parse, Otlp};

    #[test]
    fn a_collector_is_a_url_and_a_share_is_of_a_hundred() {
        let faults = |text: &str| parse(text, None, &[]).unwrap().validate();
        faults("[otlp]\nendpoint = \"https://collector.example.org/otlp\"\npercent = 5").unwrap();
        let error = faults("[otlp]\nendpoint = \"localhost:4318\"\npercent = 101")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("http://127.0.0.1:4318") && error.contains("otlp.percent"),
            "{error}"
        );
    }

    #[test]
    fn the_usual_variable_names_the_collector_unless_the_file_does() {
        let usual = [("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), "http://a:4318".to_owned())];
        let endpoint = |text: &str| parse(text, None, &usual).unwrap().otlp.endpoint;
        assert_eq!(endpoint("").as_deref(), Some("http://a:4318"));
        assert_eq!(endpoint("[otlp]\nendpoint = \"http://b\"").as_deref(), Some("http://b"));
        assert_eq!(parse("", None, &[]).unwrap().otlp, Otlp::default());
    }
}
