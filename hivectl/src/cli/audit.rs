//! What may be typed after `hivectl audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::ssh::{Address, RemoteProgram};

/// `hivectl audit …`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Print the latest records
    Tail {
        /// How many
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        lines: u32,
        /// Go on as it grows
        #[arg(long, short)]
        follow: bool,
    },
    /// Check that the journal is as it was written: exit 0 intact, 1 altered, 2 missing, 3 unsigned tail, 4 unreadable
    Verify(Verify),
    /// Print what proves one record to somebody who may not see the others
    Prove {
        /// The last record about this request
        #[arg(long, value_name = "ID", required_unless_present = "seq")]
        req: Option<String>,
        /// The record of this number
        #[arg(long, value_name = "N", conflicts_with = "req")]
        seq: Option<u64>,
        /// The journal's folder [default: this hive's]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Where to write the proof [default: stdout]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Sign all that is recorded; keep the checkpoint where this machine cannot rewrite it
    Anchor(Anchor),
    /// Print the checkpoints of a journal that another machine has kept
    Anchors(Anchors),
    /// Print all records of a person (GDPR, article 15)
    Export {
        /// The person, as the key's owner or the trusted client named them
        #[arg(long, value_name = "NAME")]
        subject: String,
    },
    /// Destroy the key of a person's pseudonym, so that nothing says whose their records are (GDPR, article 17)
    Erase {
        /// The person, as the key's owner or the trusted client named them
        #[arg(long, value_name = "NAME")]
        subject: String,
        /// Your reference for it, which is recorded; it must name nobody
        #[arg(long, value_name = "TEXT")]
        ticket: Option<String>,
    },
    /// Remove expired records, in whole segments
    Prune {
        /// How old they must be, such as 183d [default: audit.retention]
        #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
        older_than: Option<std::time::Duration>,
    },
}

/// `hivectl audit anchor`.
#[derive(Debug, Args)]
pub struct Anchor {
    /// The file to add the checkpoint to [default: stdout, unless a machine keeps it]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// A machine that keeps it, once it has proof that nothing it saw before was changed; can be given several times
    #[arg(long, value_name = "[USER@]NAME")]
    pub host: Vec<Address>,
    /// How to get there.
    #[command(flatten)]
    pub way: Way,
    /// A checkpoint that was signed already; - for stdin, as in audit.anchor_command
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// The journal's folder [default: this hive's]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `hivectl audit anchors`.
#[derive(Debug, Args)]
pub struct Anchors {
    /// The machine that keeps them
    #[arg(long, value_name = "[USER@]NAME")]
    pub host: Address,
    /// How to get there.
    #[command(flatten)]
    pub way: Way,
    /// The journal's public key [default: journal.pub of this hive]
    #[arg(long, value_name = "FILE")]
    pub pubkey: Option<PathBuf>,
    /// Where to write them [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// How to get to another machine.
#[derive(Debug, Clone, Args)]
pub struct Way {
    /// Where hivectl lies there [default: its PATH]
    #[arg(long, value_name = "PATH")]
    pub remote_hivectl: Option<RemoteProgram>,
    /// The ssh config to go by [default: your own]
    #[arg(long, value_name = "FILE")]
    pub ssh_config: Option<PathBuf>,
}

/// `hivectl audit verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The journal's folder, or a copy of it [default: this hive's]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Checkpoints that were kept elsewhere
    #[arg(long, value_name = "FILE")]
    pub anchors: Option<PathBuf>,
    /// The witness' public key, witness/witness.pub of the machine that kept them, whose signature each must bear
    #[arg(long, value_name = "FILE", requires = "anchors")]
    pub witness: Option<PathBuf>,
    /// The public key [default: journal.pub in the folder]
    #[arg(long, value_name = "FILE")]
    pub pubkey: Option<PathBuf>,
    /// The first record to look at
    #[arg(long, value_name = "N")]
    pub from: Option<u64>,
    /// The last record to look at
    #[arg(long, value_name = "N")]
    pub to: Option<u64>,
    /// Check one record's proof instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["anchors", "witness", "from", "to"])]
    pub proof: Option<PathBuf>,
}
