//! Another machine: a real sshd on loopback, started for each connection, with an account that has a hive of its own.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::house::{Ended, House, Started};

/// A machine called `box`, known to an ssh config that also names it wrongly in several ways.
pub struct Machine {
    folder: PathBuf,
    address: SocketAddr,
    sessions: Arc<Mutex<Vec<Child>>>,
    closing: Arc<AtomicBool>,
    door: Option<JoinHandle<()>>,
    /// Takes connections and never says a word.
    _mute: TcpListener,
}

impl Machine {
    /// A machine whose every file lies in the house.
    pub fn beside(house: &House) -> Self {
        let folder = house.path("box");
        fs::create_dir_all(folder.join("bin")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hivectl"), folder.join("bin/hivectl")).unwrap();
        for key in ["host", "other-host", "user", "other-user"] {
            keygen(&folder.join(key));
        }
        if fs::metadata("/proc/self").unwrap().uid() == 0 {
            // sshd shuts itself in there; Debian makes it when the service starts.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        fs::write(folder.join("sshd_config"), sshd_config(&folder)).unwrap();
        fs::write(
            folder.join("config"),
            ssh_config(&folder, address, mute.local_addr().unwrap()),
        )
        .unwrap();
        for (file, key) in [("known", "host"), ("changed", "other-host")] {
            let key = fs::read_to_string(folder.join(key).with_extension("pub")).unwrap();
            fs::write(folder.join(file), format!("[127.0.0.1]:{} {key}", address.port())).unwrap();
        }
        let (sessions, closing) = (Arc::default(), Arc::default());
        let door = {
            let (folder, sessions, closing) = (folder.clone(), Arc::clone(&sessions), Arc::clone(&closing));
            thread::spawn(move || answer(&listener, &folder, &sessions, &closing))
        };
        Self {
            folder,
            address,
            sessions,
            closing,
            door: Some(door),
            _mute: mute,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A program there, to be called instead of its hivectl.
    pub fn program(&self, name: &str, script: &str) -> String {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A command of the house for this machine under one of its names.
    pub fn command(&self, house: &House, host: &str, arguments: &[&str]) -> Command {
        let mut command = house.command(arguments);
        command.args(["--host", host, "--ssh-config"]).arg(self.path("config"));
        command
    }

    #[track_caller]
    pub fn start(&self, house: &House, arguments: &[&str]) -> Started {
        Started::new(self.command(house, "box", arguments))
    }

    #[track_caller]
    pub fn run(&self, house: &House, arguments: &[&str]) -> Ended {
        self.start(house, arguments).end()
    }

    #[track_caller]
    pub fn run_as(&self, house: &House, host: &str, arguments: &[&str]) -> Ended {
        Started::new(self.command(house, host, arguments)).end()
    }

    /// Cuts every connection, as a power failure would.
    pub fn cut(&self) {
        for session in self.sessions.lock().unwrap().iter() {
            // An sshd splits in two after its login. It fails only for one that has ended, which is not waited for yet.
            let _ = killpg(Pid::from_raw(i32::try_from(session.id()).unwrap()), Signal::SIGKILL);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(door) = self.door.take() {
            let _ = door.join();
        }
        self.cut();
        for session in self.sessions.lock().unwrap().iter_mut() {
            let _ = session.wait();
        }
        // A test that failed may have left a worker there.
        let mut down = Command::new(env!("CARGO_BIN_EXE_hivectl"));
        down.arg("--state-dir")
            .arg(self.path("home"))
            .args(["down", "--drain", "0"]);
        let _ = down.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

fn answer(listener: &TcpListener, folder: &Path, sessions: &Mutex<Vec<Child>>, closing: &AtomicBool) {
    for socket in listener.incoming() {
        if closing.load(Ordering::SeqCst) {
            return;
        }
        let socket = socket.unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join("sshd.log"))
            .unwrap();
        let session = Command::new("/usr/sbin/sshd")
            .args(["-i", "-e", "-f"])
            .arg(folder.join("sshd_config"))
            .stdin(OwnedFd::from(socket.try_clone().unwrap()))
            .stdout(OwnedFd::from(socket))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("sshd starts; on Debian it comes with `apt-get install openssh-server`");
        sessions.lock().unwrap().push(session);
    }
}

fn keygen(file: &Path) {
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
        .arg(file);
    assert!(command.status().unwrap().success());
}

fn sshd_config(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv HIVE_HOME={folder}/home HIVE_MODELS={folder}/models PATH={folder}/bin:/usr/bin:/bin
"
    )
}

fn ssh_config(folder: &Path, address: SocketAddr, mute: SocketAddr) -> String {
    let folder = folder.display();
    // A port that was free a moment ago: nobody listens there.
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    format!(
        "Host mute
  Port {}
Host closed
  Port {}
Host nowhere
  HostName no-such-machine.invalid
Host far
  HostName 192.0.2.1
Host stranger
  UserKnownHostsFile /dev/null
Host changed
  UserKnownHostsFile {folder}/changed
Host locked
  IdentityFile {folder}/other-user
Host * !locked
  IdentityFile {folder}/user
Host box locked
  UserKnownHostsFile {folder}/known
Host *
  HostName 127.0.0.1
  Port {}
  IdentitiesOnly yes
  IdentityAgent none
  GlobalKnownHostsFile /dev/null
  UpdateHostKeys no
",
        mute.port(),
        closed.port(),
        address.port()
    )
}
