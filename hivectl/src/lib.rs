//! hivectl, the operator's hand: one command brings a hive up, others look after its models, workers, keys and jobs.
//!
//! In reading order: [`cli`] says what may be typed and [`config`] what applies; [`commands`] holds one file for each
//! noun; they speak to the gateway through [`gateway_client`], fetch models through [`download`], and print only
//! through [`output`]. [`checkout`] builds the programs where there is source, [`launch`] starts workers, and
//! [`supervisor`] keeps gateway and worker up; [`hosts`] has commands done on other machines, over
//! [`ssh`], and [`witness`] keeps watch over another machine's record; what outlives a command lies in [`state`], with [`process`] and [`logs`]
//! below it. What fails becomes an [`error::Failure`]: what, why, what to do next, and an exit code.

pub mod cli;
pub mod config;
pub mod error;
pub mod output;

pub mod commands;

pub mod checkout;
pub mod download;
pub mod gateway_client;
pub mod hosts;
pub mod launch;
pub mod ssh;
pub mod supervisor;
pub mod witness;

pub mod logs;
pub mod process;
pub mod signals;
pub mod state;
