//! What `up` does in a source checkout: cargo decides, always with the same command.

use std::{fs, os::unix::fs::PermissionsExt};

use nix::sys::signal::Signal;

use crate::house::{House, Started, eventually};

/// A stand-in for cargo that does what the script says.
fn cargo(house: &House, script: &str) -> String {
    let path = house.file("cargo", &format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn up(house: &House, cargo: &str) -> Started {
    let mut command = house.command(&[
        "up",
        "--device",
        "scripted",
        "--port",
        "0",
        "--control-port",
        "0",
        "--detach",
    ]);
    command.env("CARGO", cargo);
    Started::new(command)
}

#[test]
fn cargo_is_asked_with_exactly_one_shape_of_command() {
    let house = House::new();
    let asked = house.path("asked");
    let cargo = cargo(
        &house,
        &format!(
            "echo \"$@\" > {}; echo '    Building [=> ] 3/9: serde' >&2",
            asked.display()
        ),
    );
    up(&house, &cargo).end().expect(0).says("building with cargo");
    assert_eq!(fs::read_to_string(asked).unwrap(), "build --workspace --bins\n");
    assert_eq!(house.json(&["status"])["gateway"]["ready"], true);
}

#[test]
fn a_device_brings_its_cargo_feature() {
    for device in ["cuda", "metal"] {
        let house = House::new();
        let asked = house.path("asked");
        let cargo = cargo(&house, &format!("echo \"$@\" > {}; exit 101", asked.display()));
        let mut up = house.command(&["up", "--device", device, "--port", "0", "--control-port", "0"]);
        up.env("CARGO", cargo);
        Started::new(up).end().expect(1).says("the build of");
        let expected = format!("build --workspace --bins --features worker/{device}\n");
        assert_eq!(fs::read_to_string(asked).unwrap(), expected);
    }
}

#[test]
fn ctrl_c_during_the_build_leaves_no_compiler() {
    let house = House::new();
    // The house's path in the command line makes the compiler visible to `House::processes`.
    let compiler = house.file("compiler", "sleep 600");
    let cargo = cargo(
        &house,
        &format!("echo '    Building [=> ] 3/9: serde' >&2; sh {compiler} & wait"),
    );
    let mut up = up(&house, &cargo);
    up.until("building with cargo");
    eventually("the compiler runs", || {
        house
            .processes()
            .iter()
            .any(|line| line.contains(&compiler))
            .then_some(())
    });
    up.signal(Signal::SIGINT);
    up.end().expect(130);
    house.is_empty();
}

#[test]
fn a_missing_compiler_is_told_with_its_remedy() {
    let house = House::new();
    let without_cc = cargo(&house, "echo 'error: linker `cc` not found' >&2; exit 101");
    up(&house, &without_cc)
        .end()
        .expect(1)
        .says("linker `cc` not found")
        .says("build-essential");
    house.is_empty();
}

#[test]
fn a_missing_cargo_is_told_with_its_remedy() {
    let house = House::new();
    let mut command = house.command(&["up", "--device", "scripted", "--port", "0", "--control-port", "0"]);
    command.env("PATH", house.path("empty"));
    Started::new(command)
        .end()
        .expect(1)
        .says("cargo cannot be run")
        .says("rustup.rs");
    house.is_empty();
}
