//! The protocols' [`Channel`] over a lane.

use std::time::Duration;

use bytes::Bytes;
use concilium_mpc::{Address, Channel, ChannelError, Neighbour, Protocol, Step};

use super::{Lane, LaneError};
use crate::{
    chunk::MAX_CHUNK_BYTES,
    v1::{ProtocolMessage, lane_frame::Frame},
};

/// Longest payload that is put together for one address, in bytes. It bounds what a faulty peer can
/// make this server store; batches are sized far below it.
const MAX_PAYLOAD_BYTES: usize = 1 << 30;

/// Carries the messages of one batch. Messages of other batches, and frames that are no messages, end
/// the batch: all three servers run the same program, so whatever else arrives means that they are out
/// of step.
pub struct LaneChannel<'a> {
    lane: &'a mut Lane,
    session: u64,
    patience: Duration,
}

impl<'a> LaneChannel<'a> {
    /// The channel of the batch `session`. A receive waits at most `patience` for each frame.
    pub fn new(lane: &'a mut Lane, session: u64, patience: Duration) -> Self {
        Self { lane, session, patience }
    }

    fn failure(neighbour: Neighbour, address: Address, error: LaneError) -> ChannelError {
        match error {
            LaneError::TimedOut { waited_ms, .. } => ChannelError::TimedOut { neighbour, address, waited_ms },
            other => ChannelError::Disconnected { neighbour, address, reason: other.to_string() },
        }
    }

    /// An address of another batch is a fault of the caller; no peer waits for it.
    fn check_session(&self, neighbour: Neighbour, address: Address) -> Result<(), ChannelError> {
        if address.session == self.session {
            return Ok(());
        }
        Err(ChannelError::OutOfStep {
            neighbour,
            expected: Address { session: self.session, ..address },
            received: format!("nothing yet: this server itself addressed {address}"),
        })
    }
}

impl Channel for LaneChannel<'_> {
    fn send(&mut self, to: Neighbour, address: Address, payload: Vec<u8>) -> Result<(), ChannelError> {
        self.check_session(to, address)?;
        let mut rest = Bytes::from(payload);
        loop {
            let payload = rest.split_to(rest.len().min(MAX_CHUNK_BYTES));
            let continues = !rest.is_empty();
            let message = ProtocolMessage {
                session: address.session,
                step: address.step.sequence,
                protocol: address.step.protocol.code().into(),
                record: address.record,
                payload,
                continues,
            };
            self.lane
                .send(to, Frame::ProtocolMessage(message))
                .map_err(|error| Self::failure(to, address, error))?;
            if !continues {
                return Ok(());
            }
        }
    }

    fn receive(&mut self, from: Neighbour, address: Address) -> Result<Vec<u8>, ChannelError> {
        self.check_session(from, address)?;
        let mut collected = Vec::new();
        loop {
            let frame = self
                .lane
                .receive(from, self.patience)
                .map_err(|error| Self::failure(from, address, error))?;
            let message = match frame.frame {
                Some(Frame::ProtocolMessage(message)) => message,
                Some(Frame::Abort(abort)) if abort.batch == self.session => {
                    let reason = format!("it gave up the batch: {}", abort.reason);
                    return Err(ChannelError::Disconnected { neighbour: from, address, reason });
                }
                other => {
                    let received = format!("a {} frame", frame_name(other.as_ref()));
                    return Err(ChannelError::OutOfStep { neighbour: from, expected: address, received });
                }
            };
            if !is_at(&message, address) {
                let received = describe_address(&message);
                return Err(ChannelError::OutOfStep { neighbour: from, expected: address, received });
            }
            if !message.continues && collected.is_empty() {
                return Ok(message.payload.into());
            }
            if message.continues && message.payload.is_empty() {
                let reason = "it sent an empty piece of a message".to_owned();
                return Err(ChannelError::Disconnected { neighbour: from, address, reason });
            }
            if collected.len() + message.payload.len() > MAX_PAYLOAD_BYTES {
                let reason = format!("its message passed the limit of {MAX_PAYLOAD_BYTES} bytes");
                return Err(ChannelError::Disconnected { neighbour: from, address, reason });
            }
            collected.extend_from_slice(&message.payload);
            if !message.continues {
                return Ok(collected);
            }
        }
    }
}

fn is_at(message: &ProtocolMessage, address: Address) -> bool {
    message.session == address.session
        && message.step == address.step.sequence
        && message.protocol == u32::from(address.step.protocol.code())
        && message.record == address.record
}

/// The address of a message that need not be one that this program knows.
fn describe_address(message: &ProtocolMessage) -> String {
    let protocol = u8::try_from(message.protocol).ok().and_then(Protocol::from_code);
    let (session, sequence, record) = (message.session, message.step, message.record);
    match protocol {
        Some(protocol) => Address { session, step: Step { sequence, protocol }, record }.to_string(),
        None => format!(
            "session {session:016x} step {sequence} (unknown protocol {}) record {record}",
            message.protocol
        ),
    }
}

fn frame_name(frame: Option<&Frame>) -> &'static str {
    match frame {
        Some(Frame::Hello(_)) => "Hello",
        Some(Frame::Plan(_)) => "Plan",
        Some(Frame::PlanReply(_)) => "PlanReply",
        Some(Frame::Start(_)) => "Start",
        Some(Frame::Barrier(_)) => "Barrier",
        Some(Frame::ProtocolMessage(_)) => "ProtocolMessage",
        Some(Frame::Abort(_)) => "Abort",
        Some(Frame::ComponentDigests(_)) => "ComponentDigests",
        Some(Frame::Arrived(_)) => "Arrived",
        Some(Frame::Released(_)) => "Released",
        Some(Frame::Incomplete(_)) => "Incomplete",
        Some(Frame::Heartbeat(_)) => "Heartbeat",
        Some(Frame::LedgerSummary(_)) => "LedgerSummary",
        Some(Frame::LedgerProof(_)) => "LedgerProof",
        Some(Frame::ModelWaiting(_)) => "ModelWaiting",
        Some(Frame::SelfTest(_)) => "SelfTest",
        Some(Frame::SelfTestReply(_)) => "SelfTestReply",
        Some(Frame::SelfTestStart(_)) => "SelfTestStart",
        Some(Frame::SelfTestVerdict(_)) => "SelfTestVerdict",
        None => "unknown",
    }
}
