//! `GET /v1/models` and `/v1/models/{id}`, and the control plane's list; all from memory, at once.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;
use utoipa::ToSchema;
use wire::{
    Capabilities, EngineName, ModelFacts, ModelName, ModelView,
    openai::parameters::{self, Kind, Support},
};

use crate::{
    auth::caller::{Operator, Reader},
    error::ApiError,
    scheduler::NoSlot,
    state::AppState,
};

/// A list of models, in OpenAI's form.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    object: &'static str,
    /// The models that are ready.
    data: Vec<Model>,
}

/// One model, in OpenAI's form; what Hive knows beyond that is under `hive`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Model {
    /// Its name, as requests give it.
    id: ModelName,
    /// `model`.
    object: &'static str,
    /// When the registry first heard of it, in Unix seconds.
    created: i64,
    /// `hive`.
    owned_by: &'static str,
    /// What Hive knows of it.
    hive: Hive,
}

/// What Hive knows of a model.
#[derive(Debug, Serialize, ToSchema)]
pub struct Hive {
    /// Longest prompt plus answer, in tokens.
    context_length: Option<u32>,
    /// The weights' quantisation.
    quantization: Option<String>,
    /// The model's architecture.
    architecture: Option<String>,
    /// The engine behind it; null: an attached server.
    engine: Option<EngineName>,
    /// What it can do; null: not known.
    capabilities: Option<Capabilities>,
    /// Workers that serve it and are ready.
    workers_ready: u32,
    /// Workers that serve it and are loading.
    workers_loading: u32,
    /// What becomes of each parameter, by route; only where one model is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
}

/// What becomes of each parameter of a request, by the request's kind.
#[derive(Debug, Serialize, ToSchema)]
pub struct Parameters {
    /// Of `/v1/chat/completions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    chat: Option<BTreeMap<&'static str, Support>>,
    /// Of `/v1/completions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    completions: Option<BTreeMap<&'static str, Support>>,
    /// Of `/v1/embeddings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    embeddings: Option<BTreeMap<&'static str, Support>>,
}

impl Parameters {
    /// Those of the routes that serve this model: where its workers differ, the best that one of them does.
    fn of(workers: &[ModelFacts]) -> Self {
        let of = |kind, can: fn(&Capabilities) -> bool| {
            let able = |facts: &&ModelFacts| facts.capabilities.as_ref().is_none_or(can);
            let able: Vec<&ModelFacts> = workers.iter().filter(able).collect();
            let best = |row: &parameters::Parameter| able.iter().map(|facts| row.on(facts)).min();
            let rows = parameters::table(kind).filter_map(|row| Some((row.name, best(row)?)));
            (!able.is_empty()).then(|| rows.collect())
        };
        Self {
            chat: of(Kind::Chat, |can| can.chat),
            completions: of(Kind::Completions, |can| can.completions),
            embeddings: of(Kind::Embeddings, |can| can.embeddings),
        }
    }
}

impl From<ModelView> for Model {
    fn from(view: ModelView) -> Self {
        Self {
            id: view.id,
            object: "model",
            created: view.created_at_ms / 1000,
            owned_by: "hive",
            hive: Hive {
                context_length: view.facts.context_length,
                quantization: view.facts.quantization,
                architecture: view.facts.architecture,
                engine: view.facts.engine,
                capabilities: view.facts.capabilities,
                workers_ready: view.workers_ready,
                workers_loading: view.workers_loading,
                parameters: None,
            },
        }
    }
}

/// List the models that are ready.
#[utoipa::path(get, path = "/v1/models", tag = "models", responses(
    (status = 200, description = "The models that are ready", body = ModelList),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
))]
pub async fn list(State(state): State<AppState>, Reader(reader): Reader) -> Json<ModelList> {
    let ready = state
        .dispatcher
        .models()
        .into_iter()
        .filter(|model| model.workers_ready > 0 && reader.may_call(&model.id));
    Json(ModelList {
        object: "list",
        data: ready.map(Model::from).collect(),
    })
}

/// Look at one model; its name may hold slashes.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "models",
    params(("id" = String, Path, description = "The model's name, slashes plain or as %2F", example = "smollm2-135m")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
        (status = 403, description = "The key lacks the scope, or is not for this model", body = wire::ErrorEnvelope),
        (status = 404, description = "The model is not known", body = wire::ErrorEnvelope),
        (status = 503, description = "No worker serves it now", body = wire::ErrorEnvelope),
    ))]
pub async fn show(
    State(state): State<AppState>,
    Reader(reader): Reader,
    Path(id): Path<String>,
) -> Result<Json<Model>, ApiError> {
    let unknown = || ApiError::ModelNotFound(wire::printable(&id, 100));
    let name: ModelName = id.parse().map_err(|_| unknown())?;
    if !reader.may_call(&name) {
        return Err(ApiError::ModelNotAllowed(name.to_string()));
    }
    let view = state.dispatcher.model(&name).ok_or_else(unknown)?;
    match (view.workers_ready, view.workers_loading) {
        (0, 0) => Err(ApiError::NoSlot(NoSlot::NoWorker, id)),
        (0, _) => Err(ApiError::NoSlot(NoSlot::Loading, id)),
        _ => {
            let parameters = Parameters::of(&state.dispatcher.facts(&view.id));
            let mut model = Model::from(view);
            model.hive.parameters = Some(parameters);
            Ok(Json(model))
        }
    }
}

/// List every model the registry knows, ready or not.
#[utoipa::path(get, path = "/control/v1/models", tag = "models", responses(
    (status = 200, description = "All models", body = Vec<ModelView>),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
))]
pub async fn list_all(State(state): State<AppState>, _: Operator) -> Json<Vec<ModelView>> {
    Json(state.dispatcher.models())
}
