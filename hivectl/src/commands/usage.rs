//! `hivectl usage`: requests and tokens by key, model and day.

use wire::UsageRow;

use crate::{cli::Usage, config::Config, error::Failure, gateway_client::Gateway, output::Output};

/// Runs the command.
pub async fn run(args: &Usage, config: &Config, output: &Output) -> Result<(), Failure> {
    let rows = Gateway::find(config)?
        .usage(args.key.as_deref(), args.model.as_ref(), args.days)
        .await?;
    if output.is_json() {
        output.json(&rows);
    } else {
        let headers = ["day", "key", "model", "requests", "prompt tokens", "completion tokens"];
        output.table(&headers, &rows.iter().map(cells).collect::<Vec<_>>());
    }
    Ok(())
}

fn cells(row: &UsageRow) -> Vec<String> {
    vec![
        row.day.clone(),
        row.key_id.clone(),
        row.model.clone(),
        row.requests.to_string(),
        row.prompt_tokens.to_string(),
        row.completion_tokens.to_string(),
    ]
}
