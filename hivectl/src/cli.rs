//! What may be typed: the commands and flags of `hivectl`, as types without behaviour.
#![expect(
    clippy::doc_markdown,
    clippy::struct_excessive_bools,
    reason = "the comments are help texts, and flags are bools"
)]

pub mod audit;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use gateway::config::Mode;
use serde::{Deserialize, Serialize};
use wire::{ModelName, Priority, Scope, WorkerId};

use self::audit::AuditCommand;
use crate::ssh::{Address, RemoteProgram};

/// The model of a bare `up`.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// Flags of every command, apart from its own.
const EVERYWHERE: &str = "Options of every command";
/// Flags of the commands that other machines can do.
const ELSEWHERE: &str = "On another machine";

/// Run and look after a hive: one OpenAI-compatible endpoint over the GPUs and CPUs you own.
#[derive(Debug, Parser)]
#[command(name = "hivectl", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// Flags every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags every command takes.
#[derive(Debug, Default, Args)]
pub struct Global {
    /// Print JSON on stdout instead of text
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,
    /// The hive's state folder [default: $HIVE_HOME, else $XDG_STATE_HOME/hive]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The gateway's control plane [default: $HIVE_CONTROL_URL, else the hive of the state folder]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "URL")]
    pub control_url: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring up a gateway and a worker, and keep them up
    Up(Box<Up>),
    /// Stop everything of this hive that runs on this machine
    Down(Down),
    /// Put the gateway's new program in place of the running one, without a failed request
    Upgrade,
    /// Say what runs
    Status,
    /// Check this machine for what a hive needs
    Doctor,
    /// Download and look after models
    Models {
        /// On which machine.
        #[command(flatten)]
        place: Place,
        /// What to do there.
        #[command(subcommand)]
        command: ModelsCommand,
    },
    /// Start, stop and look after workers
    Worker {
        /// On which machine.
        #[command(flatten)]
        place: Place,
        /// What to do there.
        #[command(subcommand)]
        command: WorkerCommand,
    },
    /// Send requests and see what became of them
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// Say why a request went where it did, what failed, and how long each part took
    Explain {
        /// Its id: from `jobs list`, or the `x-request-id` of its answer
        id: String,
    },
    /// Talk with a model
    Chat(Chat),
    /// Make, list, rotate and revoke API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Look at tokens of the identity provider, and revoke them
    #[command(subcommand)]
    Token(TokenCommand),
    /// Say how many requests and tokens each key has used
    Usage(Usage),
    /// Read, verify and anchor the record of what happened
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Do what the hivectl of another machine asks for on stdin; started by its `--host`
    #[command(hide = true)]
    RemoteExec,
    /// Tend a gateway and its workers; started by `up --detach`, which writes the plan to stdin
    #[command(hide = true)]
    Supervise,
}

/// On which machine a command is done.
#[derive(Debug, Default, Args)]
pub struct Place {
    /// Do it on another machine, over SSH; NAME as your ssh config knows it
    #[arg(long, global = true, help_heading = ELSEWHERE, value_name = "[USER@]NAME")]
    pub host: Option<Address>,
    /// Where hivectl lies there [default: its PATH]
    #[arg(long, global = true, help_heading = ELSEWHERE, value_name = "PATH")]
    pub remote_hivectl: Option<RemoteProgram>,
    /// The ssh config to go by [default: your own]
    #[arg(long, global = true, help_heading = ELSEWHERE, value_name = "FILE")]
    pub ssh_config: Option<PathBuf>,
}

/// `hivectl up`.
#[derive(Debug, Args)]
pub struct Up {
    /// The model to serve: a name from the catalogue, or a source as `models download` takes it
    #[arg(long, short, default_value = DEFAULT_MODEL)]
    pub model: String,
    /// What the worker runs on
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    pub device: Backend,
    /// How many requests the worker takes at once [default: 1 on a CPU, many on a GPU]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub slots: Option<u32>,
    /// How many threads the worker computes with [default: the machine's cores]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: Option<u32>,
    /// The data plane's port; 0 lets the system pick [default: 7411, or a free one if that is taken]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// The control plane's port; 0 lets the system pick [default: 7412, or a free one if that is taken]
    #[arg(long, value_name = "PORT")]
    pub control_port: Option<u16>,
    /// How much is recorded in the audit journal [default: that of config.toml, else metadata]
    #[arg(long, value_name = "MODE")]
    pub audit: Option<Mode>,
    /// Return when the hive is ready, and leave it running
    #[arg(long, short)]
    pub detach: bool,
    /// Print `export NAME='value'` lines for a shell's eval, and nothing else on stdout
    #[arg(long, requires = "detach", conflicts_with_all = ["ask", "json"])]
    pub print_env: bool,
    /// Ask one question and stream the answer
    #[arg(long, value_name = "QUESTION")]
    pub ask: Option<String>,
    /// Shut down after the answer, which is all that stdout gets
    #[arg(long, requires = "ask", conflicts_with_all = ["detach", "json"])]
    pub once: bool,
    /// Use the programs that lie beside hivectl as they are, also in a source checkout
    #[arg(long)]
    pub no_build: bool,
    /// What a scripted worker does, for tests
    #[arg(long, value_name = "FILE", hide = true)]
    pub script: Option<PathBuf>,
    /// How long the model may take to load, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
}

/// `hivectl down`.
#[derive(Debug, Args)]
pub struct Down {
    /// How long answers in the making may take to end, in seconds; 0 cuts them off
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub drain: u64,
}

/// What a worker computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// This machine's processor
    Cpu,
    /// An NVIDIA GPU
    Cuda,
    /// An Apple GPU
    Metal,
    /// No model at all: deterministic tokens, for tests and benchmarks
    Scripted,
}

impl Backend {
    /// Its name, as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
            Self::Scripted => "scripted",
        }
    }
}

/// `hivectl models …`.
#[derive(Debug, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelsCommand {
    /// Fetch a model and check it
    Download {
        /// A catalogue name, `hf:org/repo[@revision][/file]`, an https:// URL, or a local path
        #[arg(value_name = "NAME|SOURCE")]
        source: String,
        /// What to call it [default: the catalogue name, else the file's stem]
        #[arg(long)]
        name: Option<ModelName>,
        /// Fetch it anew even if it is here
        #[arg(long)]
        force: bool,
    },
    /// List the models on this machine
    List {
        /// List the catalogue too: what could be downloaded by name
        #[arg(long)]
        catalogue: bool,
    },
    /// Say everything known about a model
    Show {
        /// Its name
        name: ModelName,
    },
    /// Compare models on disk with their recorded size and digest
    Verify {
        /// Their names [default: all]
        names: Vec<ModelName>,
    },
    /// Remove models from this machine
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<ModelName>,
    },
}

/// `hivectl worker …`.
#[derive(Debug, Subcommand)]
pub enum WorkerCommand {
    /// Start a worker on this machine, wait until it is ready, and print its id
    Spawn(Box<Spawn>),
    /// List the gateway's workers
    List,
    /// Let a worker finish what it holds, then end it
    Stop {
        /// Its id
        id: WorkerId,
        /// How long it may take to finish, in seconds; 0 cuts off what it holds
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        drain: u64,
    },
    /// Stop a worker of this machine and start it again as it was
    Restart {
        /// Its id
        id: WorkerId,
        /// How long it may take to finish what it holds, and then again to load, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        timeout: u64,
    },
    /// Print a worker's log
    Logs {
        /// Its id
        id: WorkerId,
        /// Go on as it grows
        #[arg(long, short)]
        follow: bool,
        /// How many lines to begin with
        #[arg(long, short = 'n', value_name = "N", default_value_t = 200)]
        lines: usize,
    },
    /// Let the gateway route to any OpenAI-compatible server
    Attach(AttachServer),
    /// Take an attached server out, or shut a lost worker out: it comes back only with a new join token
    Detach {
        /// Its id
        id: WorkerId,
        /// Also a worker that lives, such as one on a machine you do not trust any more
        #[arg(long)]
        force: bool,
    },
}

/// `hivectl worker spawn`.
#[derive(Debug, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spawn {
    /// What it runs on
    #[arg(value_enum)]
    pub backend: Backend,
    /// The model to serve: a name from the catalogue, or a source as `models download` takes it
    #[arg(long, short)]
    pub model: String,
    /// The id to give it [default: one is made up]
    #[arg(long, value_name = "ID")]
    pub name: Option<WorkerId>,
    /// Which GPU, counted from 0
    #[arg(long, value_name = "N")]
    pub gpu: Option<u32>,
    /// How many requests it takes at once [default: 1 on a CPU, many on a GPU]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub slots: Option<u32>,
    /// How many threads it computes with [default: the machine's cores]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: Option<u32>,
    /// The port it listens on [default: one the system picks]
    #[arg(long)]
    pub port: Option<u16>,
    /// What to call it; keys may be for workers of some labels alone; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = wire::parse_label)]
    #[serde(default)]
    pub labels: Vec<(String, String)>,
    /// How much more than its speed says the gateway is to give it [default: 1, as much]
    #[arg(long, value_name = "N")]
    #[serde(default)]
    pub weight: Option<f32>,
    /// The control plane it registers with [default: this hive's]
    #[arg(long, value_name = "URL")]
    pub gateway: Option<String>,
    /// Return at once instead of when it is ready
    #[arg(long)]
    pub no_wait: bool,
    /// How long the model may take to load, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// What a scripted worker does, for tests
    #[arg(long, value_name = "FILE", hide = true)]
    pub script: Option<PathBuf>,
}

/// `hivectl worker attach`.
#[derive(Debug, Args)]
pub struct AttachServer {
    /// Its base URL, with or without /v1
    #[arg(long)]
    pub url: String,
    /// A file with its API key
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// A model to route to it; may be repeated [default: all it lists]
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<ModelName>,
    /// The id to give it [default: made from its host and port]
    #[arg(long, value_name = "ID")]
    pub name: Option<WorkerId>,
    /// How many requests it takes at once [default: 64]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub slots: Option<u32>,
    /// What to call it; keys may be for workers of some labels alone; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = wire::parse_label)]
    pub labels: Vec<(String, String)>,
    /// How much more than its speed says the gateway is to give it [default: 1, as much]
    #[arg(long, value_name = "N")]
    pub weight: Option<f32>,
}

/// `hivectl jobs …`.
#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// Send one prompt; prints the job's id on stderr and the answer on stdout as it comes
    Submit(Submit),
    /// List recent requests, the newest first
    List {
        /// How many
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Stop a request that waits or runs
    Cancel {
        /// Its id
        id: String,
    },
}

/// `hivectl jobs submit`.
#[derive(Debug, Args)]
pub struct Submit {
    /// The model to ask
    #[arg(long, short)]
    pub model: ModelName,
    /// What to ask
    #[arg(long, short)]
    pub prompt: String,
    /// The longest answer, in tokens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// How much chance there is in the choice of tokens, from 0 to 2
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// How long to wait for the next sign of life, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
}

/// `hivectl chat`.
#[derive(Debug, Args)]
pub struct Chat {
    /// The model to talk with [default: $HIVE_MODEL, else the only one there is]
    #[arg(long, short)]
    pub model: Option<ModelName>,
}

/// `hivectl usage`.
#[derive(Debug, Args)]
pub struct Usage {
    /// Of this key alone, by its public id: the eight characters after `hvk_`
    #[arg(long, value_name = "ID")]
    pub key: Option<String>,
    /// Of this model alone
    #[arg(long)]
    pub model: Option<ModelName>,
    /// Of how many days (UTC), today included
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3660))]
    pub days: u32,
}

/// `hivectl keys …`.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key and print it, the only time it is shown
    Create(CreateKey),
    /// List the keys, without their secrets
    List,
    /// Show one key, without its secret
    Show {
        /// Its public id: the eight characters after `hvk_`
        id: String,
    },
    /// Make a second key on the same terms and print it; the old one stays good for a while
    Rotate {
        /// The old one's public id: the eight characters after `hvk_`
        id: String,
        /// How long the old key stays good, such as 1h or 0s
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "24h")]
        grace: Duration,
    },
    /// Revoke a key at once, and cancel what runs with it
    Revoke {
        /// Its public id: the eight characters after `hvk_`
        id: String,
    },
}

/// `hivectl token …`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Say what the gateway makes of a token, or of an API key, and why; read from stdin, never from the command line
    Verify {
        /// Read it from this file instead
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Take no token any more that a holder has by now, and cancel what runs with one
    Revoke {
        /// The holder as `hivectl usage`, `hivectl jobs list` and the log call them, jwt_…
        #[arg(required_unless_present = "subject")]
        id: Option<String>,
        /// The holder as the identity provider names them instead
        #[arg(long, value_name = "NAME", conflicts_with = "id")]
        subject: Option<String>,
    },
}

/// `hivectl keys create`.
#[derive(Debug, Args)]
pub struct CreateKey {
    /// What it is for
    pub name: String,
    /// What it may do; may be repeated: infer, models:read, admin, metrics:read, worker:join, audit:read
    #[arg(long = "scope", value_name = "SCOPE", value_parser = scope, default_values = ["infer", "models:read"])]
    pub scopes: Vec<Scope>,
    /// Who holds it
    #[arg(long)]
    pub owner: Option<String>,
    /// A model it may call; may be repeated; none: all
    #[arg(long = "model", value_name = "MODEL")]
    pub models: Vec<ModelName>,
    /// How long it is good for, such as 12h or 90d [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub expires: Option<Duration>,
    /// Requests in any minute
    #[arg(long, value_name = "N")]
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in any minute
    #[arg(long, value_name = "N")]
    pub tokens_per_minute: Option<u64>,
    /// Tokens of prompts and answers in a day (UTC)
    #[arg(long, value_name = "N")]
    pub tokens_per_day: Option<u64>,
    /// Requests at a time
    #[arg(long, value_name = "N")]
    pub concurrent_requests: Option<u32>,
    /// Tokens of prompts and answers in all
    #[arg(long, value_name = "N")]
    pub token_budget: Option<u64>,
    /// Believe its holder when it names the person it asks for (Open WebUI does)
    #[arg(long)]
    pub trusted: bool,
    /// Whose requests go first when there is not enough for all: high, normal, low
    #[arg(long, value_name = "PRIORITY", value_parser = priority, default_value = "normal")]
    pub priority: Priority,
    /// A label that a worker must have to get its requests; may be repeated
    #[arg(long = "worker-label", value_name = "NAME=VALUE", value_parser = wire::parse_label)]
    pub labels: Vec<(String, String)>,
}

fn priority(text: &str) -> Result<Priority, String> {
    Priority::parse(text).ok_or_else(|| {
        format!(
            "a priority is one of {}",
            Priority::ALL.map(Priority::as_str).join(", ")
        )
    })
}

fn scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).ok_or_else(|| format!("a scope is one of {}", Scope::ALL.map(Scope::as_str).join(", ")))
}

/// The exit code of a command line that cannot be understood; `audit verify` keeps 1 to 4 for what it finds.
pub fn usage_code(error: &clap::Error, arguments: &[String]) -> u8 {
    let verifies = arguments.windows(2).any(|pair| pair == ["audit", "verify"]);
    match error.exit_code() {
        0 => 0,
        _ if verifies => 64,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
