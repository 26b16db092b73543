//! Keeps up with what a waypoint is to have.
//!
//! In: states, and who a waypoint says it is and has proven to be. Out: its newest [`View`], or why it has none. All
//! waypoints that are sent the same share one compilation, which is made when the first of them needs it, and never on
//! a thread that streams wait for. A waypoint whose Gateway is gone keeps what it had.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use proto::envoy::envoy::config::core::v3::Node;
use tokio::{
    sync::{OnceCell, Semaphore, watch},
    task::spawn_blocking,
};
use tonic::Status;
use tracing::{info, warn};

use super::{
    secrets,
    state::State,
    view::{Configuration, View},
};
use crate::{
    callers::Caller,
    compile::{
        Resources,
        waypoint::{Client, ClientError},
    },
    manifests::{Pod, PodState},
};

/// What waypoints are sent in one state, by who they are.
#[derive(Debug, Default)]
pub(crate) struct Configurations(Mutex<HashMap<Client, Compilation>>);

/// Nothing if there is no such waypoint.
type Compilation = Arc<OnceCell<Option<Arc<Configuration>>>>;

impl Configurations {
    fn of(&self, client: &Client) -> Compilation {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(client.clone()).or_default())
    }
}

/// Who a waypoint is.
#[derive(Debug)]
pub(crate) struct Waypoint {
    /// As it says.
    pub node: Node,
    /// Who has proven to call for it, if anybody has.
    pub caller: Option<Caller>,
}

/// Why a waypoint is sent nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoView {
    #[error(transparent)]
    Node(#[from] ClientError),
    #[error("node `{id}` belongs to no Gateway of class istio-waypoint or istio-east-west")]
    NoGateway { id: String },
    #[error("node `{id}` is no pod that {caller} speaks for")]
    NotTheirs { id: String, caller: Caller },
    #[error("compiling was given up")]
    Stopped,
}

impl From<&NoView> for Status {
    fn from(reason: &NoView) -> Self {
        let message = reason.to_string();
        match reason {
            NoView::Node(_) => Self::invalid_argument(message),
            NoView::NoGateway { .. } => Self::failed_precondition(message),
            NoView::NotTheirs { .. } => Self::permission_denied(message),
            NoView::Stopped => Self::unavailable(message),
        }
    }
}

/// The newest view; none before the first state.
pub(crate) type Newest = watch::Receiver<Option<Result<Arc<View>, Status>>>;

/// Starts following, until the receiver is dropped or the waypoint is refused.
pub(crate) fn follow(
    waypoint: Waypoint,
    mut states: watch::Receiver<Option<Arc<State>>>,
    room: Arc<Semaphore>,
) -> Newest {
    let (newest, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let waypoint = Arc::new(waypoint);
        let mut before: Option<Arc<View>> = None;
        loop {
            let state = states.borrow_and_update().clone();
            if let Some(state) = state {
                let made = view(Arc::clone(&waypoint), Arc::clone(&state), &room).await;
                let (view, ended) = kept(&waypoint.node.id, made, before.take(), &state);
                before = view.as_ref().ok().cloned();
                newest.send_replace(Some(view));
                if ended {
                    return;
                }
            }
            tokio::select! {
                () = newest.closed() => return,
                changed = states.changed() => if changed.is_err() { return },
            }
        }
    });
    receiver
}

/// What a waypoint has from here on, and whether that is the end.
fn kept(
    id: &str,
    made: Result<View, NoView>,
    before: Option<Arc<View>>,
    state: &Arc<State>,
) -> (Result<Arc<View>, Status>, bool) {
    match (made, before) {
        (Ok(view), before) => {
            if before.is_some_and(|before| before.is_kept) {
                info!(id, "the waypoint has a Gateway again");
            }
            (Ok(Arc::new(view)), false)
        }
        (Err(NoView::NoGateway { .. }), Some(before)) => {
            if !before.is_kept {
                warn!(id, "the waypoint's Gateway is gone: it keeps what it has");
            }
            let (waypoint, secrets) = (before.waypoint.clone(), Arc::clone(&before.secrets));
            let view = View::of_waypoint(Arc::clone(state), waypoint, secrets);
            (Ok(Arc::new(View { is_kept: true, ..view })), false)
        }
        (Err(reason), _) => {
            warn!(id, %reason, "refusing a waypoint");
            (Err(Status::from(&reason)), true)
        }
    }
}

async fn view(
    waypoint: Arc<Waypoint>,
    state: Arc<State>,
    room: &Semaphore,
) -> Result<View, NoView> {
    let id = waypoint.node.id.clone();
    let known = spawn_blocking({
        let state = Arc::clone(&state);
        move || identify(&waypoint, &state)
    });
    let (client, secrets) = known.await.map_err(|_| NoView::Stopped)??;
    let cell = state.configurations.of(&client);
    let compiled = cell.get_or_try_init(|| async {
        // So many at once as there is room for: a change concerns all waypoints at the same time.
        let _room = room.acquire().await.map_err(|_| NoView::Stopped)?;
        let snapshot = Arc::clone(&state.snapshot);
        let compile = move || snapshot.waypoint(&client).as_ref().map(Configuration::from);
        let compiled = spawn_blocking(compile).await.map_err(|_| NoView::Stopped)?;
        Ok::<_, NoView>(compiled.map(Arc::new))
    });
    let compiled = compiled.await?.clone().ok_or(NoView::NoGateway { id })?;
    Ok(View::of_waypoint(Arc::clone(&state), Some(compiled), secrets))
}

/// Who the waypoint is, and the Secrets of its namespace if it has proven to be of it.
fn identify(waypoint: &Waypoint, state: &State) -> Result<(Client, Arc<Resources>), NoView> {
    let client = state.snapshot.client(&waypoint.node)?;
    let Some(caller) = &waypoint.caller else { return Ok((client, Arc::default())) };
    let pod = pod(&waypoint.node, &client.namespace, state);
    if !speaks_for(caller, &client.namespace, pod) {
        return Err(NoView::NotTheirs { id: waypoint.node.id.clone(), caller: caller.clone() });
    }
    let secrets = secrets::resources(state.snapshot.secrets(&client.namespace));
    Ok((client, Arc::new(secrets)))
}

/// Namespace and service account of the pod that a node says it is.
///
/// # Errors
/// If `caller` does not speak for it.
pub(crate) fn account(
    caller: &Caller,
    node: &Node,
    state: &State,
) -> Result<(String, String), NoView> {
    let client = state.snapshot.client(node)?;
    let pod = pod(node, &client.namespace, state);
    let account = match caller {
        Caller::Node(_) => pod.map(|pod| pod.service_account.to_string()),
        Caller::Pod(of) => Some(of.service_account.to_string()),
        Caller::Certified(who) => Some(who.service_account().to_owned()),
    };
    match account.filter(|_| speaks_for(caller, &client.namespace, pod)) {
        Some(account) => Ok((client.namespace, account)),
        None => Err(NoView::NotTheirs { id: node.id.clone(), caller: caller.clone() }),
    }
}

/// The pod that a node says it is, if it runs.
fn pod<'a>(node: &Node, namespace: &str, state: &'a State) -> Option<&'a Pod> {
    let (name, _) = node.id.split('~').nth(2)?.rsplit_once('.')?;
    let pod = &state.snapshot.pod(namespace, name)?.spec;
    (pod.state != PodState::Ended).then_some(pod)
}

/// A node speaks for the pods on it, and a pod for itself: what a client says of its namespace must be what it proves.
fn speaks_for(caller: &Caller, namespace: &str, pod: Option<&Pod>) -> bool {
    let is_of = |account: &str| pod.is_none_or(|pod| *pod.service_account == *account);
    match caller {
        Caller::Node(node) => pod.is_some_and(|pod| *pod.node == **node),
        Caller::Pod(of) => *of.namespace == *namespace && is_of(&of.service_account),
        Caller::Certified(who) => who.namespace() == namespace && is_of(who.service_account()),
    }
}
