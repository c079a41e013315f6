//! `hivectl remote-exec`: does what the hivectl of another machine asks for on stdin, and answers on stdout.
//!
//! It knows no flags: what is asked was checked when it was typed, and is checked again as it is read.

use super::{models, worker};
use crate::{
    config::Config,
    error::Failure,
    hosts::{Act, Caller, Frame},
    output::Output,
    ssh::Hello,
    witness::Witness,
};

/// Says hello, and gives the output that tells the caller how it ends.
pub fn answer() -> Output {
    let output = Output::elsewhere(false);
    output.frame(&Hello::own());
    output
}

/// Looks at a checkpoint of a journal over there, and keeps it.
async fn witness(caller: &mut Caller, key: &str, config: &Config, output: &Output) -> Result<(), Failure> {
    let witness = Witness::of(config, key)?;
    let seen = witness.seen()?;
    output.frame(&Frame::Seen(seen));
    let checkpoint = caller.checkpoint().await?;
    let size = witness.take(seen, &checkpoint.note, &checkpoint.proof)?;
    output.note(match seen {
        0 => format!(
            "keeps {size} records of {}, which it sees for the first time",
            witness.journal()
        ),
        _ => format!("keeps {size} records of {}", witness.journal()),
    });
    Ok(())
}

/// Does one thing for the caller; stops when they hang up.
pub async fn run(config: &Config) -> Result<(), Failure> {
    let mut caller = Caller::on_stdin();
    let ask = caller.ask().await?;
    let output = &Output::elsewhere(ask.json);
    match ask.act {
        Act::Models(command) => caller.while_there(models::run(command, config, output)).await,
        Act::Workers => {
            output.frame(&Frame::Workers(worker::guest::placed(config)));
            Ok(())
        }
        Act::Spawn { args, gateway } => worker::guest::spawn(&mut caller, *args, gateway, config, output).await,
        Act::Restart { id, timeout } => worker::guest::restart(&mut caller, &id, timeout, config, output).await,
        Act::Stop { id, drain } => {
            caller
                .while_there(worker::stop::stop_here(&id, drain, config, output))
                .await
        }
        Act::Witness { key } => witness(&mut caller, &key, config, output).await,
        Act::Anchors { key } => {
            for note in Witness::of(config, &key)?.kept()? {
                output.frame(&Frame::Kept(note));
            }
            Ok(())
        }
        Act::Logs { id, follow, lines } => {
            caller
                .while_there(worker::logs::print(&id, follow, lines, config, output))
                .await
        }
    }
}
