//! `hivectl keys …`: API keys of the gateway.

use wire::{KeyView, NewKey, Scope};

use crate::{cli::KeysCommand, config::Config, error::Failure, gateway_client::Gateway, output::Output};

/// Runs one `keys` command.
pub async fn run(command: KeysCommand, config: &Config, output: &Output) -> Result<(), Failure> {
    let gateway = Gateway::find(config)?;
    match command {
        KeysCommand::Create { name, scopes } => {
            let created = gateway.create_key(&NewKey { name, scopes }).await?;
            if output.is_json() {
                output.json(&created);
            } else {
                output.note("this key is shown only now; keep it in a place of its own");
                output.line(&created.key);
            }
        }
        KeysCommand::List => {
            let keys = gateway.keys().await?;
            if output.is_json() {
                output.json(&keys);
            } else {
                output.table(
                    &["id", "name", "scopes", "state"],
                    &keys.iter().map(row).collect::<Vec<_>>(),
                );
            }
        }
        KeysCommand::Revoke { id } => {
            gateway.revoke_key(&id).await?;
            output.note(format_args!("key {id} is revoked"));
        }
    }
    Ok(())
}

fn row(key: &KeyView) -> Vec<String> {
    let scopes: Vec<&str> = key.scopes.iter().map(|scope: &Scope| scope.as_str()).collect();
    let state = if key.revoked_at_ms.is_some() { "revoked" } else { "live" };
    vec![key.id.clone(), key.name.clone(), scopes.join(" "), state.to_owned()]
}
