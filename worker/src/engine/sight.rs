//! What images become in a prompt: the mark that stands for one, and how many tokens it takes.
//!
//! A prompt must be counted before it takes a slot, so this does the engine's sums over again; a test compares both. It
//! knows two families of models, and never looks at pixels.

use std::path::Path;

use serde_json::Value;

use super::LoadError;

/// How a model sees.
#[derive(Debug, Clone, PartialEq)]
pub enum Sight {
    /// Gemma 3: every image becomes one square, and the same number of tokens.
    Gemma3 {
        /// Tokens of one image.
        tokens: u64,
    },
    /// Qwen3-VL: an image keeps its shape, and has a token for each of its tiles.
    Qwen3Vl {
        /// Side of a tile, in pixels.
        tile: u32,
        /// The fewest pixels it is enlarged to.
        least: u64,
        /// The most pixels it is reduced to.
        most: u64,
    },
}

/// A text that means something to the model, and must not come from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The text; one token.
    pub text: &'static str,
    /// The chat template writes it once for each image; otherwise never.
    pub is_written: bool,
}

const fn mark(text: &'static str, is_written: bool) -> Mark {
    Mark { text, is_written }
}

const GEMMA: [Mark; 3] = [
    mark("<start_of_image>", true),
    mark("<image_soft_token>", false),
    mark("<end_of_image>", false),
];

const QWEN: [Mark; 5] = [
    mark("<|image_pad|>", true),
    mark("<|vision_start|>", true),
    mark("<|vision_end|>", true),
    mark("<|video_pad|>", false),
    mark("<|placeholder|>", false),
];

impl Sight {
    /// How the model in `folder` sees; none if it only reads.
    pub fn of(folder: &Path, config: &Value) -> Result<Option<Self>, LoadError> {
        let Some(vision) = config.get("vision_config").filter(|vision| vision.is_object()) else {
            return Ok(None);
        };
        let architecture = config["architectures"][0].as_str().unwrap_or_default();
        let settings = Settings::read(folder)?;
        let sight = match architecture {
            "Gemma3ForConditionalGeneration" => Self::gemma3(config, &settings),
            "Qwen3VLForConditionalGeneration" => Self::qwen3vl(vision, &settings),
            _ => {
                return Err(LoadError::Engine(format!(
                    "{} is a {architecture}, and of the models that see only Gemma 3 and Qwen3-VL are run here; take one of \
                     these, or a server that runs yours: `hivectl worker attach --url URL`",
                    folder.display()
                )));
            }
        };
        sight.map(Some).map_err(|fault| LoadError::Damaged {
            path: folder.join("preprocessor_config.json"),
            fault,
        })
    }

    fn gemma3(config: &Value, settings: &Settings) -> Result<Self, String> {
        settings.must_be(
            "do_pan_and_scan",
            |value| value != Some(true),
            "left out (no crops are made)",
        )?;
        settings.must_be("do_convert_rgb", |value| value != Some(false), "true or left out")?;
        for key in ["do_resize", "do_rescale", "do_normalize"] {
            settings.must_be(key, |value| value.is_some(), "true or false")?;
        }
        if settings.get("rescale_factor").is_none_or(|factor| !factor.is_f64()) {
            return Err("it has no `rescale_factor`".to_owned());
        }
        let side = settings.get("size").map(|size| [&size["height"], &size["width"]]);
        if side.is_none_or(|side| side.iter().any(|side| **side != config["vision_config"]["image_size"])) {
            return Err("its `size` is not the `image_size` in config.json".to_owned());
        }
        let tokens = config["mm_tokens_per_image"].as_u64();
        match (tokens, settings.number("image_seq_length").unwrap_or(256)) {
            (Some(tokens), length) if tokens == length => Ok(Self::Gemma3 { tokens }),
            _ => Err("its `image_seq_length` is not the `mm_tokens_per_image` in config.json".to_owned()),
        }
    }

    fn qwen3vl(vision: &Value, settings: &Settings) -> Result<Self, String> {
        // The engine's defaults, first of the images, then of the model.
        let same = [
            ("patch_size", 14, "patch_size", 16),
            ("merge_size", 2, "spatial_merge_size", 2),
            ("temporal_patch_size", 2, "temporal_patch_size", 2),
        ];
        for (key, default, of_model, default_of_model) in same {
            let (ours, models) = (settings.number(key), vision[of_model].as_u64());
            if ours.unwrap_or(default) != models.unwrap_or(default_of_model) || ours == Some(0) {
                return Err(format!("its `{key}` is not the `{of_model}` in config.json"));
            }
        }
        settings.must_be("do_resize", |value| value != Some(false), "true or left out")?;
        let tile = settings.number("patch_size").unwrap_or(14) * settings.number("merge_size").unwrap_or(2);
        let size = |key: &str| settings.get("size").and_then(|size| size[key].as_u64());
        let pixels = |key: &str, edge: &str, default| settings.number(key).or_else(|| size(edge)).unwrap_or(default);
        Ok(Self::Qwen3Vl {
            tile: u32::try_from(tile).map_err(|_| "its `patch_size` is too large".to_owned())?,
            least: pixels("min_pixels", "shortest_edge", 256 * 256),
            most: pixels("max_pixels", "longest_edge", 1536 * 1536),
        })
    }

    /// What a client's text must not hold.
    pub fn marks(&self) -> &'static [Mark] {
        match self {
            Self::Gemma3 { .. } => &GEMMA,
            Self::Qwen3Vl { .. } => &QWEN,
        }
    }

    /// The model's tokens for an image of `width` by `height` pixels; an error says why it cannot be seen.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "as the engine rounds"
    )]
    pub fn tokens(&self, (width, height): (u32, u32)) -> Result<u64, String> {
        let (tile, least, most) = match *self {
            Self::Gemma3 { tokens } => return Ok(tokens),
            Self::Qwen3Vl { tile, least, most } => (tile, least, most),
        };
        if width.min(height) < tile {
            return Err(format!(
                "has {width} × {height} pixels, and the model sees none with a side under {tile}; send it larger"
            ));
        }
        let (width, height) = (f64::from(width), f64::from(height));
        if width.max(height) / width.min(height) > 200.0 {
            return Err("is more than 200 times as long as it is wide; send a part of it".to_owned());
        }
        let side = f64::from(tile);
        let tiles = |length: f64| (length / side).round();
        let pixels = (tiles(width) * tiles(height)) as u64 * u64::from(tile) * u64::from(tile);
        let (across, down) = if pixels > most {
            let shrink = (width * height / most as f64).sqrt();
            ((width / shrink / side).floor(), (height / shrink / side).floor())
        } else if pixels < least {
            let grow = (least as f64 / (width * height)).sqrt();
            ((width * grow / side).ceil(), (height * grow / side).ceil())
        } else {
            (tiles(width), tiles(height))
        };
        match (across * down) as u64 {
            0 => Err("is too long and thin to be seen; send a part of it".to_owned()),
            tokens => Ok(tokens),
        }
    }

    /// A prompt as the model sees it: each image's mark becomes as many tokens as `images` says, in their order.
    pub fn spread(&self, prompt: &str, images: &[u64]) -> String {
        let mark = self.marks()[0].text;
        let mut parts = prompt.split(mark);
        let mut spread = parts.next().unwrap_or_default().to_owned();
        for (part, tokens) in parts.zip(images) {
            let tokens = usize::try_from(*tokens).unwrap_or(usize::MAX);
            match self {
                Self::Gemma3 { .. } => {
                    let [open, token, close] = GEMMA.map(|mark| mark.text);
                    spread = spread + "\n\n" + open + &token.repeat(tokens) + close + "\n\n";
                }
                Self::Qwen3Vl { .. } => spread += &mark.repeat(tokens),
            }
            spread += part;
        }
        spread
    }
}

/// How images are made ready for the model: `preprocessor_config.json`, or in newer folders `processor_config.json`.
struct Settings(Vec<Value>);

impl Settings {
    fn read(folder: &Path) -> Result<Self, LoadError> {
        let mut files = Vec::new();
        for name in ["preprocessor_config.json", "processor_config.json"] {
            let path = folder.join(name);
            match std::fs::read(&path) {
                Ok(text) => {
                    let settings: Value = serde_json::from_slice(&text).map_err(|error| LoadError::Damaged {
                        path,
                        fault: format!("it is not JSON ({error})"),
                    })?;
                    files.extend(settings.get("image_processor").cloned());
                    files.push(settings);
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(LoadError::Unreadable { path, source }),
            }
        }
        Ok(Self(files))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        let found = self.0.iter().find_map(|file| file.get(key));
        found.filter(|value| !value.is_null())
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    fn must_be(&self, key: &str, fits: impl Fn(Option<bool>) -> bool, what: &str) -> Result<(), String> {
        if fits(self.get(key).and_then(Value::as_bool)) {
            Ok(())
        } else {
            Err(format!("its `{key}` must be {what}"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    const QWEN_3: Sight = Sight::Qwen3Vl {
        tile: 32,
        least: 65_536,
        most: 16_777_216,
    };

    fn of(config: &Value, files: &[(&str, Value)]) -> Result<Option<Sight>, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        Sight::of(folder.path(), config).map_err(|error| error.to_string())
    }

    fn gemma() -> Value {
        json!({"architectures": ["Gemma3ForConditionalGeneration"], "mm_tokens_per_image": 256,
            "vision_config": {"image_size": 896}})
    }

    fn gemma_settings() -> Value {
        json!({"do_convert_rgb": null, "do_normalize": true, "do_pan_and_scan": null, "do_rescale": true,
            "do_resize": true, "image_seq_length": 256, "rescale_factor": 0.003_921_568_627_450_98,
            "size": {"height": 896, "width": 896}})
    }

    #[test]
    fn models_are_known_by_their_files() {
        let text = json!({"architectures": ["Qwen3ForCausalLM"]});
        assert_eq!(of(&text, &[]), Ok(None));
        let settings = [("preprocessor_config.json", gemma_settings())];
        assert_eq!(of(&gemma(), &settings), Ok(Some(Sight::Gemma3 { tokens: 256 })));
        let qwen = json!({"architectures": ["Qwen3VLForConditionalGeneration"], "vision_config": {"patch_size": 16}});
        let settings = json!({"size": {"longest_edge": 16_777_216, "shortest_edge": 65_536}, "patch_size": 16,
            "temporal_patch_size": 2, "merge_size": 2});
        assert_eq!(
            of(&qwen, &[("preprocessor_config.json", settings.clone())]),
            Ok(Some(QWEN_3))
        );
        // As newer folders have it.
        let newer = [("processor_config.json", json!({"image_processor": settings}))];
        assert_eq!(of(&qwen, &newer), Ok(Some(QWEN_3)));
    }

    #[test]
    fn settings_that_the_engine_would_break_over_are_named() {
        for (key, value) in [
            ("do_pan_and_scan", json!(true)),
            ("do_convert_rgb", json!(false)),
            ("do_rescale", json!(null)),
            ("rescale_factor", json!("1/255")),
            ("size", json!({"shortest_edge": 896})),
            ("image_seq_length", json!(64)),
        ] {
            let mut settings = gemma_settings();
            settings[key] = value;
            let fault = of(&gemma(), &[("preprocessor_config.json", settings)]).unwrap_err();
            assert!(
                fault.contains(&format!("`{key}`")) && fault.contains("preprocessor_config.json"),
                "{fault}"
            );
        }
        let qwen = json!({"architectures": ["Qwen3VLForConditionalGeneration"], "vision_config": {}});
        let fault = of(&qwen, &[]).unwrap_err();
        assert!(fault.contains("`patch_size`"), "{fault}");
    }

    #[test]
    fn an_image_takes_a_token_for_each_tile() {
        for (size, tokens) in [
            ((1024, 1024), 1024),
            ((640, 480), 300),
            ((32, 32), 64),
            ((8000, 4000), 16_290),
        ] {
            assert_eq!(QWEN_3.tokens(size), Ok(tokens), "{size:?}");
        }
        for (size, why) in [((31, 500), "under 32"), ((16_384, 40), "200 times")] {
            assert!(QWEN_3.tokens(size).unwrap_err().contains(why), "{size:?}");
        }
    }

    #[test]
    fn marks_become_tokens_in_their_order() {
        let gemma = Sight::Gemma3 { tokens: 2 };
        assert_eq!(
            gemma.spread("a<start_of_image>b", &[2]),
            "a\n\n<start_of_image><image_soft_token><image_soft_token><end_of_image>\n\nb"
        );
        assert_eq!(
            QWEN_3.spread("<|image_pad|>b<|image_pad|>", &[1, 2]),
            "<|image_pad|>b<|image_pad|><|image_pad|>"
        );
    }
}
