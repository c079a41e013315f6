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

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream, stream::BoxStream};
use mistralrs::{
    Constraint, CustomLogitsProcessor, DefaultSchedulerMethod, DeviceMapSetting, LlguidanceGrammar, MemoryGpuConfig,
    MistralRs, ModelDType, NormalRequest, PagedAttentionConfig, PagedCacheType, Request, RequestMessage, Response,
    SamplingParams, SchedulerConfig, Tensor, TextMessageRole, TextMessages, TokenSource,
    core::{
        GGUFLoaderBuilder, GGUFSpecificConfig, Loader, MistralRsBuilder, NormalLoaderBuilder, NormalSpecificConfig,
        Pipeline,
    },
};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use wire::ModelFacts;

use super::{
    ChatRequest, Engine, EngineError, Event, LoadError, Prepared, Report, Role, Slot, Spec, gguf, progress,
    run::{Choice, Run, Vocabulary, Wants},
    safetensors,
    sampling::Sampler,
    text::Answer,
};
use crate::config::Device;

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
    let is_folder = path.is_dir();
    let mut facts = if is_folder {
        safetensors::inspect(path)?
    } else {
        gguf::inspect(path)?.facts
    };
    report("loading the weights", 0.05);
    let loader = if is_folder {
        folder_loader(path)?
    } else {
        gguf_loader(path)?
    };
    let paged = match spec.device {
        Device::Cuda(_) | Device::Metal => Some(PagedAttentionConfig::new(
            None,
            MemoryGpuConfig::Utilization(0.9),
            PagedCacheType::Auto,
        )),
        Device::Cpu | Device::Scripted => None,
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
    let has_template = guard
        .get_chat_template()
        .is_some_and(|template| template.has_chat_template());
    let vocabulary = vocabulary(&*guard).filter(|_| has_template);
    drop(guard);
    let Some(vocabulary) = vocabulary.map(Arc::new) else {
        return Err(LoadError::Engine(format!(
            "{} has no chat template or no tokenizer, so it cannot chat; take an instruction-tuned variant of the model",
            path.display()
        )));
    };
    let trained = u32::try_from(metadata.max_seq_len).unwrap_or(u32::MAX);
    let context = spec.context_length.map_or(trained, |wanted| wanted.min(trained));
    facts.context_length = Some(context);

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
    let turns = without_paging.then(|| Arc::new(Semaphore::new(1)));
    let builder = MistralRsBuilder::new(pipeline.clone(), scheduler, false, None).with_no_prefix_cache(without_paging);
    let runner = tokio::runtime::Handle::current().block_on(builder.build());
    Ok(Mistral {
        runner,
        pipeline,
        vocabulary,
        facts,
        context,
        turns,
    })
}

fn gguf_loader(path: &Path) -> Result<Box<dyn Loader>, LoadError> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(LoadError::Engine(format!("{} is not a file", path.display())));
    };
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let names = vec![name.to_string_lossy().into_owned()];
    let folder = folder.to_string_lossy().into_owned();
    Ok(GGUFLoaderBuilder::new(None, None, folder, names, GGUFSpecificConfig::default(), false, None).build())
}

fn folder_loader(path: &Path) -> Result<Box<dyn Loader>, LoadError> {
    let folder = Some(path.to_string_lossy().into_owned());
    NormalLoaderBuilder::new(NormalSpecificConfig::default(), None, None, folder, false, None)
        .build(None)
        .map_err(|error| engine_error(&error))
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

/// What the model's tokens say.
fn vocabulary(pipeline: &dyn Pipeline) -> Option<Vocabulary> {
    let metadata = pipeline.get_metadata();
    let tokenizer = pipeline.tokenizer()?;
    let tokens = metadata.tok_env()?;
    Some(Vocabulary {
        decode: Box::new(move |ids| tokenizer.decode(ids, true).unwrap_or_default()),
        bytes: Box::new(move |id| tokens.tok_trie().decode_ext(&[id], true)),
        ends: metadata.eos_tok.clone(),
    })
}

/// A loaded model.
#[derive(Clone)]
struct Mistral {
    runner: Arc<MistralRs>,
    pipeline: SharedPipeline,
    vocabulary: Arc<Vocabulary>,
    facts: ModelFacts,
    context: u32,
    /// One permit, where the engine cannot take two requests at once.
    turns: Option<Arc<Semaphore>>,
}

impl Engine for Mistral {
    fn facts(&self) -> ModelFacts {
        self.facts.clone()
    }

    fn prepare(&self, request: ChatRequest) -> BoxFuture<'_, Result<Prepared, EngineError>> {
        let context = self.context;
        async move {
            let pipeline = self.pipeline.clone().lock_owned().await;
            let work = tokio::task::spawn_blocking(move || {
                let prompt = tokenize(&*pipeline, &request)?;
                Prepared::new(request, prompt, context)
            });
            match tokio::time::timeout(TEMPLATE_LIMIT, work).await {
                Ok(Ok(prepared)) => prepared,
                Ok(Err(panic)) => Err(EngineError::Failed(panic_text(panic))),
                Err(_) => Err(EngineError::Failed(format!(
                    "the chat template did not come to an end within {} s",
                    TEMPLATE_LIMIT.as_secs()
                ))),
            }
        }
        .boxed()
    }

    fn generate(&self, prepared: Prepared, slot: Slot) -> BoxStream<'static, Event> {
        let engine = self.clone();
        let run = async move {
            let turn = match engine.turns.clone() {
                Some(turns) => turns.acquire_owned().await.ok(),
                None => None,
            };
            match engine.start(prepared, (slot, turn)) {
                Ok(run) => stream::unfold(run, |mut run| async {
                    let events = run.next().await?;
                    Some((stream::iter(events), run))
                })
                .flatten()
                .boxed(),
                Err(reason) => stream::iter([Event::Failed(reason)]).boxed(),
            }
        };
        run.flatten_stream().boxed()
    }
}

/// The schema as the engine's grammar should read it: without free white space, in which small models lose themselves.
fn compact(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(keys) = schema.as_object_mut() {
        let style = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        keys.entry("x-guidance").or_insert(style);
    }
    schema
}

/// The prompt as the model sees it, and a check of what the grammar must take.
fn tokenize(pipeline: &dyn Pipeline, request: &ChatRequest) -> Result<Vec<u32>, EngineError> {
    if let (Some(schema), Some(factory)) = (&request.schema, &pipeline.get_metadata().llg_factory) {
        factory
            .create_parser(LlguidanceGrammar::from_json_schema(compact(schema)))
            .map_err(|error| {
                let message = format!("the schema cannot be used: {error}");
                EngineError::Invalid {
                    param: "response_format",
                    message,
                }
            })?;
    }
    let messages = request.messages.iter().fold(TextMessages::new(), |messages, message| {
        let role = match message.role {
            Role::System => TextMessageRole::System,
            Role::User => TextMessageRole::User,
            Role::Assistant => TextMessageRole::Assistant,
            Role::Tool => TextMessageRole::Tool,
        };
        messages.add_message(role, &message.text)
    });
    let rendered = pipeline
        .get_processor()
        .process(pipeline, messages.into(), true, true, None, None, Vec::new());
    let (mut tokens, text) = rendered.map_err(|error| {
        let message = format!("the model's chat template refuses these messages: {error:#}");
        EngineError::Invalid {
            param: "messages",
            message,
        }
    })?;
    // Templates that write the begin mark meet tokenizers that add it: one is enough.
    let begin = pipeline.get_chat_template().and_then(|template| template.bos_tok());
    if begin.is_some_and(|begin| text.starts_with(&begin)) && tokens.len() > 1 && tokens[0] == tokens[1] {
        tokens.remove(0);
    }
    Ok(tokens)
}

impl Mistral {
    /// Hands the prompt to the engine.
    fn start(&self, prepared: Prepared, held: Held) -> Result<Run<Response>, String> {
        let answer = Answer::new(prepared.prompt_tokens(), prepared.budget, prepared.request.stop);
        let schema = prepared.request.schema.as_ref().map(compact);
        let wants = Wants {
            logprobs: prepared.request.logprobs.is_some(),
            grammar: schema.is_some(),
        };
        let sampler = Sampler::new(
            prepared.request.sampling,
            prepared.prompt.len(),
            prepared.request.logprobs,
        );
        let (choices, chosen) = mpsc::unbounded_channel();
        let choose = Choose {
            sampler,
            choices,
            _held: Mutex::new(held),
        };
        // Room for all it can say: the engine's one thread waits for a full channel, and all requests with it.
        let (response, responses) = mpsc::channel(prepared.budget as usize + 8);
        let request = NormalRequest {
            constraint: schema.map_or(Constraint::None, Constraint::JsonSchema),
            logits_processors: Some(vec![Arc::new(choose) as Arc<dyn CustomLogitsProcessor>]),
            is_streaming: true,
            ..NormalRequest::new_simple(
                RequestMessage::CompletionTokens(prepared.prompt),
                SamplingParams {
                    temperature: Some(0.0),
                    max_len: Some(prepared.budget as usize),
                    ..SamplingParams::neutral()
                },
                response,
                0,
                None,
                None,
            )
        };
        let sender = self.runner.get_sender(None).map_err(|error| error.to_string())?;
        sender
            .try_send(Request::Normal(Box::new(request)))
            .map_err(|error| error.to_string())?;
        Ok(Run::new(
            self.vocabulary.clone(),
            answer,
            chosen,
            responses,
            reason,
            wants,
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

/// Our choice of tokens, in the engine's terms.
struct Choose {
    sampler: Sampler,
    choices: mpsc::UnboundedSender<Choice>,
    /// Freed when the engine drops the request.
    _held: Mutex<Held>,
}

/// What a request occupies.
type Held = (Slot, Option<OwnedSemaphorePermit>);

impl CustomLogitsProcessor for Choose {
    fn apply(&self, logits: &Tensor, context: &[u32]) -> mistralrs::Result<Tensor> {
        let device = logits.device();
        let logits: Vec<f32> = logits.to_vec1()?;
        let vocabulary = logits.len();
        let sampled = self.sampler.sample(logits, context);
        let mut only = vec![f32::NEG_INFINITY; vocabulary];
        if let Some(logit) = only.get_mut(sampled.token as usize) {
            *logit = 1.0;
        }
        // A closed channel is a client that left. It must not become an error here: the engine would break off the
        // step for every request in the batch. It finds its own channel closed a moment later.
        let _ = self.choices.send(Choice {
            position: context.len(),
            sampled,
        });
        Tensor::from_vec(only, vocabulary, device)
    }
}
