//! What a person or a shell needs to use a hive that is up: addresses, keys, model, and lines that work when pasted.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::{cli::Up, commands::jobs::Answer, config::Config, error::Failure, output::Output, state};

/// Everything needed to use this hive.
pub struct Facts {
    /// The model that `up` was asked for.
    pub model: String,
    base_url: String,
    control_url: String,
    key: SecretString,
    admin_key: SecretString,
    home: PathBuf,
}

impl Facts {
    /// The facts of the hive that runs in the state folder.
    pub fn of(config: &Config) -> Result<Self, Failure> {
        let missing = |what: &str| {
            Failure::task(
                format!("this hive has no {what}"),
                "stop it with `hivectl down`, then run `hivectl up` again",
            )
        };
        let gateway = state::gateway(config).ok_or_else(|| missing("running gateway"))?;
        let supervisor = state::supervisor(config).ok_or_else(|| missing("record of what it serves"))?;
        let key = |name: &str| {
            state::read_secret(&config.key_file(name))?.ok_or_else(|| missing(&format!("key file keys/{name}")))
        };
        Ok(Self {
            model: supervisor.model.to_string(),
            base_url: format!("{}/v1", gateway.data_url),
            control_url: gateway.control_url,
            key: key("inference")?,
            admin_key: key("admin")?,
            home: config.home.clone(),
        })
    }

    /// Them as JSON, with what became of the question if one was asked.
    pub fn json(&self, asked: Option<&Result<Answer, Failure>>) -> Value {
        let mut facts = json!({
            "base_url": self.base_url,
            "api_key": self.key.expose_secret(),
            "model": self.model,
            "control_url": self.control_url,
            "home": self.home,
        });
        if let Some(asked) = asked {
            facts["answer"] = json!(asked.as_ref().ok().map(|answer| &answer.text));
        }
        facts
    }

    /// Prints them for a person, or for a shell. `is_ours`: the hive lives as long as this command.
    pub fn tell(&self, args: &Up, is_ours: bool, output: &Output) {
        if args.print_env {
            output.line(self.exports());
        } else if !args.once {
            output.line(self.welcome(is_ours));
        }
    }

    fn exports(&self) -> String {
        let home = self.home.to_string_lossy();
        let exports = [
            ("OPENAI_BASE_URL", self.base_url.as_str()),
            ("OPENAI_API_KEY", self.key.expose_secret()),
            ("HIVE_MODEL", &self.model),
            ("HIVE_CONTROL_URL", &self.control_url),
            ("HIVE_ADMIN_KEY", self.admin_key.expose_secret()),
            ("HIVE_HOME", &home),
        ];
        exports
            .map(|(name, value)| format!("export {name}={}", quoted(value)))
            .join("\n")
    }

    fn welcome(&self, is_ours: bool) -> String {
        let Self { base_url, model, .. } = self;
        let key = self.key.expose_secret();
        // By hand, because a JSON library would sort the keys; a model's name holds nothing to be escaped.
        let body = format!(
            r#"{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Say hello."}}]}}"#
        );
        let curl = format!(
            "curl -N {base_url}/chat/completions -H {} -H 'Content-Type: application/json' -d {}",
            quoted(&format!("Authorization: Bearer {key}")),
            quoted(&body)
        );
        // The standard library only, so that it works on a machine that has nothing but Python.
        let python = format!(
            "python3 -c {}",
            quoted(&format!(
                "import json, urllib.request as u; print(json.load(u.urlopen(u.Request(\"{base_url}/chat/completions\", \
                 json.dumps({{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Say hello.\"}}]}}).encode(), \
                 {{\"Authorization\": \"Bearer {key}\", \"Content-Type\": \"application/json\"}})))\
                 [\"choices\"][0][\"message\"][\"content\"])"
            ))
        );
        let stop = if is_ours {
            "Ctrl-C stops it, and so does `hivectl down`"
        } else {
            "`hivectl down` stops it"
        };
        format!(
            "The hive is up; {stop}.\n\n  base URL  {base_url}\n  API key   {key}\n  model     {model}\n\nTry it:\n\n{curl}\n\n{python}\n"
        )
    }
}

/// The text as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            model: "echo".into(),
            base_url: "http://127.0.0.1:7411/v1".into(),
            control_url: "http://127.0.0.1:7412".into(),
            key: "hvk_a".into(),
            admin_key: "hvk_b".into(),
            home: "/tmp/it's here".into(),
        }
    }

    #[test]
    fn exports_are_exactly_the_six_lines_a_shell_evaluates() {
        assert_eq!(
            facts().exports().lines().collect::<Vec<_>>(),
            [
                "export OPENAI_BASE_URL='http://127.0.0.1:7411/v1'",
                "export OPENAI_API_KEY='hvk_a'",
                "export HIVE_MODEL='echo'",
                "export HIVE_CONTROL_URL='http://127.0.0.1:7412'",
                "export HIVE_ADMIN_KEY='hvk_b'",
                r"export HIVE_HOME='/tmp/it'\''s here'",
            ]
        );
    }

    #[test]
    fn the_welcome_names_address_key_and_model() {
        let welcome = facts().welcome(true);
        for needed in [
            "base URL  http://127.0.0.1:7411/v1",
            "API key   hvk_a",
            "model     echo",
            "curl -N ",
            "python3 -c ",
        ] {
            assert!(welcome.contains(needed), "{needed}");
        }
        assert!(!welcome.contains("hvk_b"));
    }
}
