//! The whole house with the real engine on the real model, used as its users use it: hivectl, and the official SDKs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::house::{House, Started};

/// The folder that tests of this workspace share: models and SDKs are fetched once and kept.
fn shared() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .unwrap()
        .join("hive-test");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// A hive on the default model, and the environment `up --print-env` gives its users.
pub struct Hive {
    pub house: House,
    pub environment: Vec<(String, String)>,
}

impl Hive {
    pub fn up() -> Self {
        Self::configured("")
    }

    /// One with these settings in its `config.toml`.
    pub fn configured(settings: &str) -> Self {
        let house = House::new();
        fs::create_dir_all(house.home()).unwrap();
        fs::write(house.home().join("config.toml"), settings).unwrap();
        let arguments = [
            "up",
            "--no-build",
            "--port",
            "0",
            "--control-port",
            "0",
            "--detach",
            "--print-env",
        ];
        let printed = Started::new(command(&house, &arguments)).end().expect(0).stdout;
        let export = |line: &str| {
            let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
            Some((
                name.to_owned(),
                value.strip_prefix('\'')?.strip_suffix('\'')?.to_owned(),
            ))
        };
        let environment = printed.lines().map(|line| export(line).expect(line)).collect();
        Self { house, environment }
    }

    pub fn hivectl(&self, arguments: &[&str]) -> Started {
        Started::new(command(&self.house, arguments))
    }

    /// Runs a program in the environment that was printed; what it prints.
    pub fn run(&self, program: &mut Command) -> String {
        program.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = program.output().unwrap();
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{program:?}\n{stdout}\n{stderr}");
        stdout.into_owned()
    }
}

/// hivectl with the models all tests share and this machine's own settings for pip and proxies.
fn command(house: &House, arguments: &[&str]) -> Command {
    let mut command = house.command(arguments);
    command.env("HIVE_MODELS", shared().join("models"));
    let of_the_machine =
        |name: &str| name.starts_with("PIP_") || name.to_lowercase().ends_with("_proxy") || name.starts_with("SSL_");
    command.envs(std::env::vars().filter(|(name, _)| of_the_machine(name)));
    command
}

/// Makes a folder of tools once, for all tests.
pub fn tools(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let folder = shared().join(name);
    let lock = File::create(shared().join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let whole = folder.join("whole");
    if !whole.exists() {
        let _ = fs::remove_dir_all(&folder);
        make(&folder);
        File::create(whole).unwrap();
    }
    folder
}

/// A Python environment with these packages, made once.
pub fn venv(name: &str, packages: &[&str]) -> PathBuf {
    tools(name, |venv| {
        must(Command::new("python3").args(["-m", "venv"]).arg(venv));
        let pip = ["-m", "pip", "install", "--quiet"];
        must(Command::new(venv.join("bin/python")).args(pip).args(packages));
    })
}

pub fn must(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(name)
}

/// Both majors of the package that are in use; each raises the exceptions its documentation promises.
#[test]
fn the_official_python_package_lists_chats_streams_and_raises() {
    let hive = Hive::up();
    for major in ["2", "3"] {
        let venv = venv(&format!("openai-{major}"), &[&format!("openai=={major}.*")]);
        let said = hive.run(Command::new(venv.join("bin/python")).arg(script("openai_python.py")));
        assert!(
            said.contains(&format!("openai {major}.")) && said.contains("all good"),
            "{said}"
        );
    }
}

#[test]
fn langchain_chats_streams_calls_tools_and_gets_its_structures() {
    let hive = Hive::up();
    let venv = venv("langchain-1", &["langchain-openai==1.*"]);
    let said = hive.run(Command::new(venv.join("bin/python")).arg(script("langchain_chat.py")));
    assert!(said.contains("all good"), "{said}");
}

#[cfg(feature = "system-tests")]
#[test]
fn the_official_node_package_lists_chats_streams_and_raises() {
    let hive = Hive::up();
    let folder = tools("openai-node", |folder| {
        fs::create_dir_all(folder).unwrap();
        must(
            Command::new("npm")
                .args(["install", "--silent", "--no-audit", "--no-fund", "openai"])
                .current_dir(folder),
        );
    });
    // Node looks for packages beside the script, so the script goes beside the package.
    fs::copy(script("openai_node.mjs"), folder.join("openai_node.mjs")).unwrap();
    let said = hive.run(Command::new("node").arg(folder.join("openai_node.mjs")));
    assert!(said.contains("all good"), "{said}");
}

#[cfg(feature = "system-tests")]
#[test]
fn a_person_tries_a_chat_out_in_the_docs() {
    let hive = Hive::up();
    let venv = venv("selenium", &["selenium"]);
    let profile = hive.house.path("browser");
    let said = hive.run(
        Command::new(venv.join("bin/python"))
            .arg(script("swagger.py"))
            .arg(profile),
    );
    assert!(said.contains("all good"), "{said}");
}

#[test]
fn one_question_is_answered_on_stdout_alone_and_nothing_stays() {
    let house = House::new();
    let arguments = [
        "up",
        "--no-build",
        "--port",
        "0",
        "--control-port",
        "0",
        "--ask",
        "Name a colour.",
        "--once",
    ];
    let ended = Started::new(command(&house, &arguments)).end().expect(0);
    assert!(!ended.stdout.trim().is_empty());
    assert!(!ended.stdout.contains("http://"), "{}", ended.stdout);
    house.is_empty();
}

#[test]
fn a_killed_real_worker_costs_its_stream_an_error_and_a_new_one_serves() {
    let hive = Hive::up();
    let mut stream = Command::new("python3");
    stream.arg(script("endless.py"));
    stream.envs(hive.environment.iter().map(|(name, value)| (name, value)));
    let mut stream = Started::new(stream);
    stream.until("began");
    let pid = hive.house.ready("cpu-0", None);
    crate::house::kill(pid, nix::sys::signal::Signal::SIGKILL);
    let ended = stream.end().expect(0);
    assert_eq!(ended.stdout.trim(), "began\nworker_lost");
    hive.house.ready("cpu-0", Some(pid));
    let again = hive
        .hivectl(&[
            "jobs",
            "submit",
            "--model",
            "smollm2-135m",
            "--prompt",
            "Say hello.",
            "--max-tokens",
            "4",
        ])
        .end()
        .expect(0);
    assert!(!again.stdout.trim().is_empty());
}
