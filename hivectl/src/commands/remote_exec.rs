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
};

/// Says hello, and gives the output that tells the caller how it ends.
pub fn answer() -> Output {
    let output = Output::elsewhere(false);
    output.frame(&Hello::own());
    output
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
        Act::Logs { id, follow, lines } => {
            caller
                .while_there(worker::logs::print(&id, follow, lines, config, output))
                .await
        }
    }
}
