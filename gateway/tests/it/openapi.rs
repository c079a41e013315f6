//! The documents: what is committed, what the binary prints and what both planes serve are the same.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::Value;

use crate::{client::Reply, harness::Hive};

fn printed(plane: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_hive-gateway"))
        .env_clear()
        .args(["--print-openapi", plane])
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_committed_documents_are_those_the_gateway_serves() {
    let hive = Hive::start().await;
    for (plane, url) in [("gateway", &hive.data), ("control", &hive.control)] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../openapi/{plane}.json"));
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        let printed = printed(plane);
        // As values: the order of keys is serde_json's, which other crates' features decide.
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
        assert!(
            value(&committed) == value(&printed),
            "openapi/{plane}.json is not what the gateway serves; renew it with: cargo run -p gateway -- --print-openapi {plane} > openapi/{plane}.json"
        );
        let served = Reply::to(hive.http.get(format!("{url}/openapi.json")))
            .await
            .json()
            .await;
        assert_eq!(served, serde_json::from_str::<Value>(&printed).unwrap());
    }
}

#[test]
fn every_operation_names_its_refusals_and_says_what_it_is_for() {
    for plane in ["gateway", "control"] {
        let document: Value = serde_json::from_str(&printed(plane)).unwrap();
        let mut ids = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let what = format!("{method} {path}");
                assert!(
                    operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()),
                    "{what}"
                );
                assert!(ids.insert(operation["operationId"].to_string()), "{what}");
                let responses = operation["responses"].as_object().unwrap();
                let open = operation["security"] == serde_json::json!([{}]);
                assert!(open || responses.contains_key("401"), "{what}");
                for (status, response) in responses.iter().filter(|(status, _)| !status.starts_with('2')) {
                    let schema = &response["content"]["application/json"]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/ErrorEnvelope", "{what} {status}");
                }
            }
        }
    }
}
