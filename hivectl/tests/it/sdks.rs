//! The SDKs and frameworks that people point at a hive, each used as its users use it: with the real engine on the real
//! model, and with a scripted worker for what a well-behaved one never does.

use std::process::Command;
#[cfg(feature = "system-tests")]
use std::{fs, path::Path};

use crate::real::{Hive, script, venv};
#[cfg(feature = "system-tests")]
use crate::real::{must, tools};

/// A hive with what a script needs besides: a scripted worker of two, so that one may be lost, a model that nobody serves
/// any more, a key for another model, and one for a single request a minute.
fn hive_with_faults() -> Hive {
    // Silence is broken sooner than by default, so that a test need not wait for it.
    let mut hive = Hive::configured("[relay]\nhold_headers = \"500ms\"\nkeepalive = \"500ms\"\n");
    for (id, model) in [("echo", "echo"), ("echo-2", "echo"), ("gone", "gone")] {
        hive.hivectl(&["worker", "spawn", "scripted", "--model", model, "--name", id])
            .end()
            .expect(0);
    }
    hive.hivectl(&["worker", "stop", "gone"]).end().expect(0);
    let key = |terms: &[&str]| {
        let made = hive.hivectl(&[&["keys", "create", "a test's"], terms].concat());
        made.end().expect(0).stdout.trim().to_owned()
    };
    let more = [
        ("HIVE_SCRIPTED", "echo".to_owned()),
        ("HIVE_GONE", "gone".to_owned()),
        ("HIVE_NARROW_KEY", key(&["--model", "other"])),
        ("HIVE_POOR_KEY", key(&["--requests-per-minute", "1"])),
    ];
    let more = more.map(|(name, value)| (name.to_owned(), value));
    hive.environment.extend(more);
    hive
}

/// Runs a script by a Python that has these packages.
fn by_python(folder: &str, packages: &[&str], name: &str) {
    let python = venv(folder, packages).join("bin/python");
    let said = hive_with_faults().run(Command::new(python).arg(script(name)));
    assert!(said.contains("all good"), "{said}");
}

#[test]
fn the_official_python_package_raises_what_it_promises() {
    for major in ["2", "3"] {
        let package = format!("openai=={major}.*");
        by_python(&format!("openai-{major}"), &[&package], "openai_raises.py");
    }
}

#[cfg(feature = "system-tests")]
#[test]
fn the_official_node_package_raises_what_it_promises() {
    by_node("openai-node", &["openai"], "openai_raises.mjs");
}

#[test]
fn llamaindex_chats_calls_tools_fills_classes_and_retrieves() {
    let packages = [
        "llama-index-llms-openai-like==0.8.*",
        "llama-index-embeddings-openai-like==0.4.*",
    ];
    by_python("llamaindex-0", &packages, "llamaindex.py");
}

#[test]
fn instructor_and_pydantic_ai_get_their_structures() {
    let packages = ["instructor==1.17.*", "pydantic-ai-slim[openai]==2.*"];
    by_python("structures-1", &packages, "structures.py");
}

#[test]
fn litellm_chats_calls_tools_embeds_and_raises() {
    by_python("litellm-1", &["litellm==1.83.*"], "litellm_client.py");
}

#[cfg(feature = "system-tests")]
#[test]
fn vercels_ai_sdk_streams_calls_tools_fills_objects_and_raises() {
    let packages = ["ai@6", "@ai-sdk/openai@3", "@ai-sdk/openai-compatible@2", "zod@4"];
    by_node("ai-sdk-6", &packages, "ai_sdk.mjs");
}

/// Node's own fetch gives up on a body that is silent for 300 s; here its limit is two seconds.
#[cfg(feature = "system-tests")]
#[test]
fn a_long_silent_prefill_survives_nodes_fetch() {
    by_node("undici-7", &["undici@7"], "silence.mjs");
}

#[cfg(feature = "system-tests")]
fn by_node(folder: &str, packages: &[&str], name: &str) {
    let folder = tools(folder, |folder: &Path| {
        fs::create_dir_all(folder).unwrap();
        let install = ["install", "--silent", "--no-audit", "--no-fund"];
        must(Command::new("npm").args(install).args(packages).current_dir(folder));
    });
    // Node looks for packages beside the script, so the script goes beside the packages.
    fs::copy(script(name), folder.join(name)).unwrap();
    let said = hive_with_faults().run(Command::new("node").arg(folder.join(name)));
    assert!(said.contains("all good"), "{said}");
}
