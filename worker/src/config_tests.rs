//! What flags, environment and file make of each other.

#![allow(clippy::unwrap_used)]
use super::*;

fn read(args: &[&str]) -> Result<Config, Error> {
    let args = std::iter::once("hive-worker")
        .chain(args.iter().copied())
        .map(OsString::from)
        .collect();
    Config::from_args(args, |error| Error::Usage(error.to_string()))
}

const ALONE: [&str; 6] = ["--device", "scripted", "--model", "m", "--dispatch-token-file", "t"];

#[test]
fn slots_depend_on_the_device_unless_they_are_given() {
    for (device, slots) in [
        (Device::Cpu, 1),
        (Device::Cuda(1), 16),
        (Device::Metal, 16),
        (Device::Scripted, 4),
    ] {
        let engine = EngineConfig {
            device,
            slots: None,
            ..read(&ALONE).unwrap().engine
        };
        assert_eq!(engine.slots(), slots);
    }
    let given = [&ALONE[..], &["--slots", "7"]].concat();
    assert_eq!(read(&given).unwrap().engine.slots(), 7);
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[engine]\ndevice = \"scripted\"\nmodel = \"from-file\"\nslots = 9\n[api]\ndrain_timeout = \"7s\"\ndispatch_token_file = \"t\"\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = read(&["--config", path, "--slots", "3"]).unwrap();
    assert_eq!(config.engine.model.as_str(), "from-file");
    assert_eq!(config.engine.slots(), 3);
    assert_eq!(config.api.drain_timeout, Duration::from_secs(7));
    assert_eq!(config.api.listen.port(), 0);
}

#[test]
fn unknown_keys_in_the_file_are_all_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[engine]\nslotz = 9\n[nowhere]\nx = 1\n").unwrap();
    let error = read(&["--config", file.path().to_str().unwrap()])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`engine.slotz` is unknown; `nowhere.x` is unknown"),
        "{error}"
    );
}

#[test]
fn faults_of_several_settings_are_told_at_once() {
    let error = read(&["--device", "cpu", "--model", "m", "--gateway", "ftp://x"])
        .unwrap_err()
        .to_string();
    for part in [
        "--model-path is missing",
        "--join-token-file is missing",
        "--gateway must begin",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn devices_and_cpu_lists_are_read_as_people_write_them() {
    assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
    assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
    assert!("cuda:x".parse::<Device>().is_err());
    assert_eq!("0-2,8".parse(), Ok(CpuList(vec![0, 1, 2, 8])));
    for bad in ["", "3-1", "x", "0-99999"] {
        assert!(bad.parse::<CpuList>().is_err(), "{bad}");
    }
}

#[cfg(unix)]
#[test]
fn a_secret_that_others_can_read_is_refused() {
    use secrecy::ExposeSecret;
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let read = |mode| {
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        read_secret("--x", file.path())
    };
    assert_eq!(read(0o600).unwrap().expose_secret(), "s3cret");
    for mode in [0o644, 0o640] {
        assert!(read(mode).unwrap_err().to_string().contains("chmod 600"));
    }
    for text in ["", "\n", "two words\n", "two\nlines\n"] {
        std::fs::write(file.path(), text).unwrap();
        assert!(read(0o600).is_err(), "{text:?}");
    }
}

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/worker.example.toml");

#[test]
fn the_example_is_the_defaults() {
    let example = Config {
        file: None,
        ..read(&["--config", EXAMPLE]).unwrap()
    };
    let model = [
        "--device=cpu",
        "--model=smollm2-135m",
        "--model-path=/srv/hive/models/smollm2-135m.gguf",
    ];
    let gateway = [
        "--gateway=http://127.0.0.1:7412",
        "--join-token-file=/run/hive/join-token",
    ];
    let defaults = read(&[&model[..], &gateway].concat()).unwrap();
    assert_eq!(format!("{example:#?}"), format!("{defaults:#?}"));
}

#[test]
fn every_setting_is_in_the_example_and_what_it_comments_out_is_taken_too() {
    // A line of prose has a space after its `#`, a setting without a default has none.
    let text = std::fs::read_to_string(EXAMPLE).unwrap();
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let table: toml::Table = text.parse().unwrap();
    let known = Config::command();
    for variable in known.get_arguments().filter_map(|arg| arg.get_env()?.to_str()) {
        let path = variable.strip_prefix("HIVE_WORKER__").map(str::to_lowercase);
        let Some((section, key)) = path.as_deref().and_then(|path| path.split_once("__")) else {
            continue;
        };
        // The script is for tests.
        assert!(
            key == "script" || table[section].get(key).is_some(),
            "[{section}] {key} is missing"
        );
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    read(&["--config", file.path().to_str().unwrap()]).unwrap();
}
