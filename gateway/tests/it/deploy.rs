//! What lies in `deploy/` is what the gateway takes: its settings, its flags.

use std::{path::Path, process::Command};

use gateway::config::{Config, parse};

const EXAMPLE: &str = include_str!("../../../deploy/gateway.example.toml");
const UNIT: &str = include_str!("../../../deploy/hive-gateway.service");
const COMPOSE: &str = include_str!("../../../deploy/compose.yaml");

#[test]
fn the_example_is_the_defaults() {
    assert_eq!(parse(EXAMPLE, None, &[]).unwrap(), Config::default());
}

#[test]
fn every_setting_is_in_the_example() {
    let example: toml::Table = uncommented().parse().unwrap();
    // Debug's long form names every field: sections at four spaces, their settings at eight.
    let fields = format!("{:#?}", Config::default());
    let mut section = "";
    let mut seen = 0;
    for line in fields.lines() {
        let name = line.trim().split(':').next().unwrap();
        match line.len() - line.trim_start().len() {
            4 => section = name,
            8 if line.contains(':') => {
                assert!(
                    example[section].get(name).is_some(),
                    "[{section}] {name} is missing in the example"
                );
                seen += 1;
            }
            _ => {}
        }
    }
    assert_eq!(
        seen,
        example
            .values()
            .map(|section| section.as_table().unwrap().len())
            .sum::<usize>()
    );
}

#[test]
fn what_the_example_comments_out_is_taken_too() {
    let config = parse(&uncommented(), None, &[]).unwrap();
    config.validate().unwrap();
    assert_ne!(config, Config::default());
}

#[test]
fn the_unit_starts_the_gateway_with_flags_it_knows() {
    let line = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/bin/hive-gateway "))
        .unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gateway.example.toml");
    let checked = Command::new(env!("CARGO_BIN_EXE_hive-gateway"))
        .env_clear()
        .args(line.split_whitespace())
        .arg("--config")
        .arg(example)
        .arg("--check")
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn the_containers_settings_are_ones_the_gateway_knows() {
    let settings: Vec<(String, String)> = COMPOSE
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .filter(|(name, _)| name.starts_with("HIVE_GATEWAY__"))
        .map(|(name, value)| (name.to_owned(), value.trim_matches(['\'', '"']).to_owned()))
        .collect();
    let config = parse("", None, &settings).unwrap();
    config.validate().unwrap();
    assert!(!config.server.listen.ip().is_loopback() && !config.control.listen.ip().is_loopback());
    assert_eq!(config.control.allowed_hosts, ["gateway"]);
    let network = COMPOSE.split_once("subnet: ").unwrap().1.split_once(' ').unwrap().0;
    assert_eq!(config.registry.allowed_cidrs, [network.parse().unwrap()]);
}

/// The example with its settings that have no default: a line of prose has a space after its `#`.
fn uncommented() -> String {
    let lines = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with([' ', '#']) => setting,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}
