//! The accepting side of the link between servers.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::link::{FrameQueue, Introduced, Introduction, Link, pair_key, queue};
use crate::{
    identity::{AllowedIdentities, Role, SERVERS, check_name},
    inspection::CertificateInfo,
    reload::ReloadableTls,
    status::RpcError,
    v1::{
        CompareModelRequest, CompareModelResponse, LaneFrame, compare_model_response::Outcome,
        peer_server::Peer,
    },
};

/// Length of every digest, in bytes.
const DIGEST_BYTES: usize = 32;

/// Answers a peer's question about a component that both hold.
pub trait CompareModels: Send + Sync + 'static {
    /// Compares the digests in `request` with what is stored. The names, the lengths of the digests
    /// and the number of the component are checked already. Runs on the lane's thread between two
    /// frames, so it must not wait.
    fn compare(&self, caller: u8, request: &CompareModelRequest) -> Outcome;
}

/// Accepts the lane of the previous server and answers comparisons.
pub(super) struct PeerService {
    introduction: Introduction,
    models: Arc<dyn CompareModels>,
    accept: mpsc::UnboundedSender<Link>,
    allowed: AllowedIdentities,
    tls: ReloadableTls,
}

impl PeerService {
    pub(super) fn new(
        introduction: Introduction,
        models: Arc<dyn CompareModels>,
        accept: mpsc::UnboundedSender<Link>,
        tls: ReloadableTls,
    ) -> Self {
        Self { introduction, models, accept, allowed: AllowedIdentities::servers_only(), tls }
    }

    /// Index of the calling server.
    fn caller<T>(&self, request: &Request<T>) -> Result<u8, RpcError> {
        let identity = self.allowed.authorise(request, &[Role::Server])?;
        identity.server_index().filter(|index| *index != self.introduction.party).ok_or_else(|| {
            RpcError::RoleNotAllowed { identity: identity.to_string(), needed: "another server".to_owned() }
        })
    }
}

#[async_trait]
impl Peer for PeerService {
    type LaneStream = Replies;

    async fn lane(&self, request: Request<Streaming<LaneFrame>>) -> Result<Response<Replies>, Status> {
        let party = self.introduction.party;
        let previous = (party + SERVERS as u8 - 1) % SERVERS as u8;
        let caller = self.caller(&request)?;
        if caller != previous {
            return Err(RpcError::RoleNotAllowed {
                identity: format!("server `server-{caller}`"),
                needed: format!("server-{previous}, which dials server {party}"),
            }
            .into());
        }
        let own_end = self.tls.current().info().not_after;
        let their_end = request
            .peer_certs()
            .and_then(|chain| CertificateInfo::read(chain.first()?).ok())
            .map_or(own_end, |info| info.not_after);
        let mut incoming = request.into_inner();
        let theirs = self.introduction.expect_hello(caller, &mut incoming).await?;
        let (hello, own) = self.introduction.hello()?;
        let (outgoing, replies) = queue();
        let pair_key = pair_key(&theirs.contribution, &own);
        let Introduced { lanes, tasks, version, .. } = theirs;
        let gone = || RpcError::PeerUnavailable {
            peer: format!("server {party}"),
            step: "its lane has stopped".to_owned(),
        };
        if !outgoing.send(hello) {
            return Err(gone().into());
        }
        let certificates_end = own_end.min(their_end);
        let link =
            Link { peer: caller, outgoing, incoming, lanes, tasks, version, pair_key, certificates_end };
        self.accept.send(link).map_err(|_| gone())?;
        Ok(Response::new(Replies(replies)))
    }

    async fn compare_model(
        &self,
        request: Request<CompareModelRequest>,
    ) -> Result<Response<CompareModelResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        check_comparison(self.introduction.party, caller, &request)?;
        let outcome = self.models.compare(caller, &request);
        Ok(Response::new(CompareModelResponse { outcome: outcome.into() }))
    }
}

/// Checks everything about a comparison that needs no stored model.
fn check_comparison(party: u8, caller: u8, request: &CompareModelRequest) -> Result<(), RpcError> {
    let wrong = |field: &str, problem: String| RpcError::InvalidRequest { field: field.to_owned(), problem };
    for (field, name) in [("task", &request.task), ("owner", &request.owner), ("model", &request.model)] {
        check_name(name).map_err(|error| wrong(field, format!("is not a name: {error}")))?;
    }
    for (field, digest) in
        [("content_digest", &request.content_digest), ("component_digest", &request.component_digest)]
    {
        if digest.len() != DIGEST_BYTES {
            return Err(wrong(field, format!("has {} bytes, not {DIGEST_BYTES}", digest.len())));
        }
    }
    // Component j is held by servers j and j - 1, so of two neighbours the one further on names it.
    let shared = if (party + 1) % SERVERS as u8 == caller { caller } else { party };
    if request.component != u32::from(shared) {
        return Err(wrong(
            "component",
            format!("is {}, but servers {party} and {caller} share {shared}", request.component),
        ));
    }
    Ok(())
}

/// The frames to the previous server, as the generated code wants them.
pub(super) struct Replies(FrameQueue);

impl Stream for Replies {
    type Item = Result<LaneFrame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(context).map(|frame| frame.map(Ok))
    }
}
