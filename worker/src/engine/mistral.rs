//! The real engine: mistral.rs. The only file that names it.
//!
//! What it takes from mistral.rs: loading, the chat template, the tokenizer, the forward pass and the scheduler.
//! What it does not, because version 0.8.1 gets it wrong for a server: choosing the token (one random generator for
//! all, no `logit_bias`, log-probabilities of filtered logits: see `sampling`), text (partial code points lose the
//! end of an answer, stop texts are sent before they are found: see `text`), and without paged attention the prefix
//! cache (on a CPU it is never evicted, and its tensors are shared while they are written) and batches (on a CPU all
//! decode with the attention of the last one, so that one client reads another's answer): there, one request at a
//! time is with the engine, whatever the slots.
//!
//! The way of a token: mistral.rs calls [`Choose`] with the logits; it chooses, sends the choice to our stream and
//! leaves the engine one possible token. The engine drops `Choose` when a request has really ended, and with it the
//! slot. Dropping the stream closes the channel of the engine's own answers, which is its way to cancel: at the next
//! token, never inside a prefill.

mod choose;
mod eyes;
mod likelihood;
mod prompt;
mod speech;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicUsize},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream, stream::BoxStream};
use mistralrs::{
    Constraint, CustomLogitsProcessor, DType, DefaultSchedulerMethod, DeviceMapSetting, Function, MemoryGpuConfig,
    MessageContent, MistralRs, ModelDType, NormalRequest, PagedAttentionConfig, PagedCacheType,
    Request as EngineRequest, RequestMessage, Response, Result as EngineResult, SamplingParams, SchedulerConfig,
    Tensor, TokenSource, Tool as EngineTool, ToolType,
    core::{
        EmbeddingLoaderBuilder, EmbeddingSpecificConfig, GGUFLoaderBuilder, GGUFSpecificConfig, Loader,
        MistralRsBuilder, MultimodalLoaderBuilder, MultimodalSpecificConfig, NormalLoaderBuilder, NormalSpecificConfig,
        Pipeline, ReasoningEffort,
    },
};
use tokio::sync::mpsc;
use wire::{Capabilities, EngineName, ModelFacts, openai::Input};

use super::{
    Engine, EngineError, Event, LoadError, Prepared, Report, Request, Slot, Spec, TokenLogprob, fingerprint, gguf,
    picture::Picture,
    progress,
    run::Run,
    safetensors,
    sampling::Sampler,
    sight::Sight,
    text::Answer,
    thought::{self, Start},
    turns::{Turn, Turns},
};
use crate::config::Device;
use choose::Choose;
use eyes::Eyes;
use speech::Speech;

/// Which engine this is, for the fingerprint.
const ENGINE: &str = "mistral.rs 0.8.1";

/// A chat template is code from the model file: one that takes longer than this is taken for a runaway.
const TEMPLATE_LIMIT: Duration = Duration::from_secs(10);

type SharedPipeline = Arc<tokio::sync::Mutex<dyn Pipeline + Send + Sync>>;

/// Inspects the files, then loads and warms the model.
pub async fn load(spec: Spec, report: Report) -> Result<Arc<dyn Engine>, LoadError> {
    let path = spec.model_path.clone().unwrap_or_default();
    report("reading the model's files", 0.0);
    let meter = tokio::spawn(progress::watch(path.clone(), report.clone()));
    // The loader panics on some broken files; a thread of its own turns that into an error as well.
    let loaded = tokio::task::spawn_blocking(move || load_blocking(&path, &spec, &report)).await;
    meter.abort();
    match loaded {
        Ok(loaded) => loaded.map(|engine| Arc::new(engine) as Arc<dyn Engine>),
        Err(panic) => Err(LoadError::Engine(format!(
            "the engine broke while loading ({}); the file may be damaged, or its kind unsupported",
            panic_text(panic)
        ))),
    }
}

fn panic_text(error: tokio::task::JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else {
        return "it was cancelled".to_owned();
    };
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it panicked".to_owned())
}

fn load_blocking(path: &Path, spec: &Spec, report: &Report) -> Result<Mistral, LoadError> {
    let files = gguf::files(path);
    // The files that sentence-transformers adds make an embedding model of a folder.
    let embeds = path.join("modules.json").is_file();
    let mut facts = match files.split_first() {
        None => safetensors::inspect(path)?,
        Some((first, others)) => {
            others.iter().try_for_each(|shard| gguf::inspect(shard).map(drop))?;
            gguf::inspect(first)?.facts
        }
    };
    let sight = if embeds || !files.is_empty() {
        None
    } else {
        Sight::of(path, &safetensors::config(path)?)?
    };
    report("loading the weights", 0.05);
    let loader = if embeds {
        embedding_loader(path)
    } else if sight.is_some() {
        seeing_loader(path)
    } else if files.is_empty() {
        folder_loader(path)?
    } else {
        gguf_loader(&files)
    };
    let paged = match spec.device {
        // In a batch of which only some have images, the engine drops all of them.
        Device::Cuda(_) | Device::Metal if !embeds && sight.is_none() => Some(PagedAttentionConfig::new(
            None,
            MemoryGpuConfig::Utilization(0.9),
            PagedCacheType::Auto,
        )),
        _ => None,
    };
    let pipeline: SharedPipeline = loader
        .load_model_from_hf(
            None,
            TokenSource::None,
            &ModelDType::Auto,
            &open_device(spec.device)?,
            true,
            DeviceMapSetting::dummy(),
            None,
            paged.transpose().map_err(|error| engine_error(&error))?,
        )
        .map_err(|error| engine_error(&error))?;

    let guard = pipeline.blocking_lock();
    let metadata = guard.get_metadata();
    let sees = sight.is_some();
    let eyes = sight.map(|sight| Eyes::open(sight, &*guard)).transpose()?;
    let speech = if embeds {
        None
    } else {
        Some(Speech::of(&*guard, path, eyes)?)
    };
    drop(guard);
    let trained = u32::try_from(metadata.max_seq_len).unwrap_or(u32::MAX);
    let context = spec.context_length.map_or(trained, |wanted| wanted.min(trained));
    facts.context_length = Some(context);
    facts.engine = Some(EngineName::Mistral);
    facts.capabilities = Some(Capabilities {
        chat: !embeds,
        completions: !embeds,
        embeddings: embeds,
        tools: !embeds,
        structured_output: !embeds,
        vision: sees,
        thinking: speech.as_ref().is_some_and(|speech| speech.thinks),
    });
    let (device, context_length) = (spec.device.to_string(), context.to_string());
    let mut settings = vec![ENGINE, &device, &context_length];
    settings.extend(spec.variables.iter().flat_map(|(name, value)| [*name, value.as_str()]));
    let fingerprint = fingerprint::of(path, &settings).map_err(|source| LoadError::Unreadable {
        path: path.to_owned(),
        source,
    })?;

    report("warming up", 0.95);
    let slots = spec.slots as usize;
    let scheduler = match &metadata.cache_config {
        Some(config) => SchedulerConfig::PagedAttentionMeta {
            max_num_seqs: slots,
            config: config.clone(),
        },
        None => SchedulerConfig::DefaultScheduler {
            method: DefaultSchedulerMethod::Fixed(slots.try_into().unwrap_or(std::num::NonZeroUsize::MIN)),
        },
    };
    let without_paging = metadata.cache_config.is_none();
    let builder = MistralRsBuilder::new(pipeline.clone(), scheduler, false, None).with_no_prefix_cache(without_paging);
    let runner = tokio::runtime::Handle::current().block_on(builder.build());
    Ok(Mistral {
        runner,
        pipeline,
        speech,
        facts,
        fingerprint,
        context,
        turns: Turns::new(without_paging),
    })
}

/// The shards of one model lie in one folder.
fn gguf_loader(files: &[PathBuf]) -> Box<dyn Loader> {
    let folder = files[0].parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).to_string_lossy().into_owned();
    let names = files.iter().filter_map(|file| file.file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned()).collect();
    GGUFLoaderBuilder::new(None, None, folder, names, GGUFSpecificConfig::default(), false, None).build()
}

fn folder_loader(path: &Path) -> Result<Box<dyn Loader>, LoadError> {
    let folder = Some(path.to_string_lossy().into_owned());
    NormalLoaderBuilder::new(NormalSpecificConfig::default(), None, None, folder, false, None)
        .build(None)
        .map_err(|error| engine_error(&error))
}

fn seeing_loader(path: &Path) -> Box<dyn Loader> {
    let folder = Some(path.to_string_lossy().into_owned());
    MultimodalLoaderBuilder::new(MultimodalSpecificConfig::default(), None, None, folder, None).build(None)
}

fn embedding_loader(path: &Path) -> Box<dyn Loader> {
    let folder = Some(path.to_string_lossy().into_owned());
    EmbeddingLoaderBuilder::new(EmbeddingSpecificConfig::default(), None, folder).build(None)
}

fn open_device(device: Device) -> Result<mistralrs::Device, LoadError> {
    let opened = match device {
        Device::Cuda(ordinal) => mistralrs::Device::new_cuda(ordinal),
        Device::Metal => mistralrs::Device::new_metal(0),
        Device::Cpu | Device::Scripted => Ok(mistralrs::Device::Cpu),
    };
    opened.map_err(|error| LoadError::Engine(format!("cannot open the device `{device}`: {error}; check --device")))
}

/// The engine's first line says what is wrong; the rest is a backtrace.
fn engine_error(error: &impl std::fmt::Display) -> LoadError {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("no reason given");
    LoadError::Engine(format!("the engine refuses the model: {first}"))
}

/// A loaded model.
#[derive(Clone)]
struct Mistral {
    runner: Arc<MistralRs>,
    pipeline: SharedPipeline,
    /// None: it makes embeddings.
    speech: Option<Speech>,
    facts: ModelFacts,
    fingerprint: String,
    context: u32,
    /// One at a time, where the engine cannot take two requests at once.
    turns: Turns,
}

impl Engine for Mistral {
    fn facts(&self) -> ModelFacts {
        self.facts.clone()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The engine keeps prompts where it has paged attention, and does not say how much of them it used.
    fn cached_tokens(&self) -> Option<u32> {
        self.turns.is_one_at_a_time().then_some(0)
    }

    fn prepare(&self, request: Request) -> BoxFuture<'_, Result<Prepared, EngineError>> {
        let context = self.context;
        async move {
            let speech = self.speech.clone().ok_or(EngineError::Unsuited {
                does: "makes embeddings",
            })?;
            let (request, pictures, images) = look(speech.eyes.clone(), request).await?;
            self.with_pipeline(move |pipeline| {
                let prompt = prompt::tokenize(pipeline, &speech, &request, &images, context)?;
                let guide = speech.grounds.guide(&request)?;
                let dialect = request.tools.as_ref().map(|_| speech.grounds.dialect);
                let written = request.prompt.written(&speech.vocabulary.decode);
                let prepared = Prepared::new(request, prompt, context)?;
                let thought = (speech.reasons && prepared.may_think()).then(|| {
                    let end = prepared.prompt.len().saturating_sub(8);
                    let end = (speech.vocabulary.decode)(&prepared.prompt[end..]);
                    if end.trim_end().ends_with(thought::MARKS[0]) {
                        Start::Inside
                    } else {
                        Start::Before
                    }
                });
                Ok(Prepared {
                    written,
                    guide,
                    dialect,
                    thought,
                    pictures: pictures.into(),
                    ..prepared
                })
            })
            .await
        }
        .boxed()
    }

    fn generate(&self, prepared: Prepared, slot: Slot) -> BoxStream<'static, Event> {
        let engine = self.clone();
        self.turns.begin(move |turn| match engine.start(&prepared, slot, turn) {
            Ok(run) => stream::unfold(run, |mut run| async {
                let events = run.next().await?;
                Some((stream::iter(events), run))
            })
            .flatten()
            .boxed(),
            Err(reason) => stream::iter([Event::Failed(reason)]).boxed(),
        })
    }

    fn likelihoods(&self, prepared: &Prepared, slot: Slot) -> BoxFuture<'_, Result<Vec<TokenLogprob>, EngineError>> {
        let prepared = prepared.clone();
        async move { likelihood::of_prompt(self, &prepared, slot).await }.boxed()
    }

    fn prepare_embedding(&self, inputs: Vec<Input>) -> BoxFuture<'_, Result<Vec<Vec<u32>>, EngineError>> {
        let context = self.context;
        let suited = self.speech.is_none();
        async move {
            if !suited {
                return Err(EngineError::Unsuited {
                    does: "answers in words",
                });
            }
            // The engine's Qwen3 breaks on a single token. Its tokenizer always adds one, so only bare ids can be so few.
            let least = if self.facts.architecture.as_deref() == Some("qwen3") {
                2
            } else {
                1
            };
            self.with_pipeline(move |pipeline| {
                let tokens = inputs.into_iter().map(|input| {
                    let tokens = prompt::tokens_of(pipeline, input, "input")?;
                    match u32::try_from(tokens.len()) {
                        Ok(prompt) if prompt < least => Err(EngineError::Invalid {
                            param: "input".to_owned(),
                            message: format!(
                                "`input` has a list of {prompt} token; this model needs at least {least}."
                            ),
                        }),
                        Ok(prompt) if prompt <= context => Ok(tokens),
                        length => Err(EngineError::ContextLength {
                            context,
                            prompt: length.unwrap_or(u32::MAX),
                            asked: None,
                        }),
                    }
                });
                tokens.collect()
            })
            .await
        }
        .boxed()
    }

    fn embed(&self, inputs: Vec<Vec<u32>>, slot: Slot) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EngineError>> {
        async move {
            let held = Arc::new((slot, self.turns.clone().take().await));
            let mut vectors = Vec::with_capacity(inputs.len());
            for prompt in inputs {
                // A task of its own: whoever leaves meanwhile, the engine is taken until it has answered.
                let vector = tokio::spawn(self.clone().vector(prompt, held.clone()));
                let vector = vector.await.unwrap_or_else(|panic| Err(panic_text(panic)));
                vectors.push(vector.map_err(EngineError::Failed)?);
            }
            Ok(vectors)
        }
        .boxed()
    }
}

/// Decodes the request's images, and counts the tokens of each.
async fn look(eyes: Option<Arc<Eyes>>, request: Request) -> Result<(Request, Vec<Picture>, Vec<u64>), EngineError> {
    let Some(eyes) = eyes.filter(|_| request.prompt.images().next().is_some()) else {
        return Ok((request, Vec::new(), Vec::new()));
    };
    let work = tokio::task::spawn_blocking(move || {
        let (pictures, tokens) = eyes.look(&request)?;
        Ok((request, pictures, tokens))
    });
    work.await.unwrap_or_else(|panic| {
        Err(EngineError::Invalid {
            param: "messages".to_owned(),
            message: format!(
                "`messages` has an image that breaks its decoder ({}); send it in another format.",
                panic_text(panic)
            ),
        })
    })
}

impl Mistral {
    /// Does some work with the pipeline. A template is code from the model file, and its thread cannot be stopped.
    async fn with_pipeline<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Pipeline) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let pipeline = self.pipeline.clone().lock_owned().await;
        let work = tokio::task::spawn_blocking(move || work(&*pipeline));
        match tokio::time::timeout(TEMPLATE_LIMIT, work).await {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => Err(EngineError::Failed(panic_text(panic))),
            Err(_) => Err(EngineError::Stuck(format!(
                "the model's chat template did not come to an end within {} s; it may be broken or malicious",
                TEMPLATE_LIMIT.as_secs()
            ))),
        }
    }

    /// The vector of one input.
    async fn vector(self, prompt: Vec<u32>, _held: Arc<(Slot, Turn)>) -> Result<Vec<f32>, String> {
        let (response, mut responses) = mpsc::channel(8);
        let message = RequestMessage::EmbeddingTokens { prompt };
        let request = NormalRequest::new_simple(message, SamplingParams::neutral(), response, 0, None, None);
        self.send(request)?;
        while let Some(response) = responses.recv().await {
            match response {
                Response::Embeddings { embeddings, .. } => return Ok(embeddings),
                other => reason(other).map_or(Ok(()), Err)?,
            }
        }
        Err("it lost the request".to_owned())
    }

    fn send(&self, request: NormalRequest) -> Result<(), String> {
        let sender = self.runner.get_sender(None).map_err(|error| error.to_string())?;
        sender
            .try_send(EngineRequest::Normal(Box::new(request)))
            .map_err(|error| error.to_string())
    }

    /// Hands the prompt to the engine.
    fn start(&self, prepared: &Prepared, slot: Slot, turn: Turn) -> Result<Run<Response>, String> {
        let speech = self.speech.as_ref().ok_or("it makes embeddings")?;
        let Prepared {
            request,
            prompt,
            budget,
            guide,
            dialect,
            thought,
            pictures,
            ..
        } = prepared;
        let answer = Answer::new(prepared.prompt_tokens(), *budget, request.stop.clone(), *dialect);
        let answer = answer.with_thoughts(*thought);
        let (choices, chosen) = mpsc::unbounded_channel();
        let choose = Choose {
            sampler: Sampler::new(prepared.sampling(), prompt.len(), request.logprobs),
            guide: Mutex::new(guide.clone()),
            never: speech.eyes.as_ref().map(|eyes| eyes.never_said()).unwrap_or_default(),
            expected: AtomicUsize::new(prompt.len()),
            choices,
            turn,
            _slot: slot,
        };
        let message = if pictures.is_empty() {
            RequestMessage::CompletionTokens(prompt.to_vec())
        } else {
            RequestMessage::MultimodalChat {
                images: pictures.iter().map(Picture::to_image).collect(),
                audios: Vec::new(),
                videos: Vec::new(),
                messages: prompt::conversation(speech, request),
                enable_thinking: request.thinking.enabled,
                reasoning_effort: prompt::effort(request),
            }
        };
        // Room for all it can say: the engine's one thread waits for a full channel, and all requests with it.
        let (response, responses) = mpsc::channel(*budget as usize + 8);
        self.send(NormalRequest {
            constraint: Constraint::None,
            logits_processors: Some(vec![Arc::new(choose) as Arc<dyn CustomLogitsProcessor>]),
            is_streaming: true,
            ..NormalRequest::new_simple(
                message,
                SamplingParams {
                    temperature: Some(0.0),
                    max_len: Some(*budget as usize),
                    ..SamplingParams::neutral()
                },
                response,
                0,
                None,
                None,
            )
        })?;
        let logprobs = request.logprobs.is_some();
        Ok(Run::new(
            speech.vocabulary.clone(),
            answer,
            chosen,
            responses,
            reason,
            logprobs,
        ))
    }
}

/// What went wrong, if the engine says that something did.
fn reason(response: Response) -> Option<String> {
    match response {
        Response::InternalError(error) | Response::ValidationError(error) => Some(error.to_string()),
        Response::ModelError(reason, _) | Response::CompletionModelError(reason, _) => Some(reason),
        _ => None,
    }
}
