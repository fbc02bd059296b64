//! The protocols' [`Channel`] over a lane.

use std::time::Duration;

use bytes::Bytes;
use concilium_mpc::{Address, Channel, ChannelError, Neighbour, Protocol, Step};

use super::{Lane, LaneError};
use crate::v1::{ProtocolMessage, lane_frame::Frame};

/// Payloads from this length on, in bytes, leave at once, while this server computes what comes after
/// them. Shorter ones leave with whatever else is queued when it waits: a turn of the transport for each
/// would cost more than the peer gains.
const PROMPT_BYTES: usize = 32 << 10;

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
    fn send(&mut self, to: Neighbour, address: Address, payload: Bytes) -> Result<(), ChannelError> {
        self.check_session(to, address)?;
        let long = payload.len() >= PROMPT_BYTES;
        let message = ProtocolMessage {
            session: address.session,
            step: address.step.sequence,
            protocol: address.step.protocol.code().into(),
            record: address.record,
            payload,
        };
        self.lane
            .send(to, Frame::ProtocolMessage(message))
            .map_err(|error| Self::failure(to, address, error))?;
        if long {
            self.lane.carry();
        }
        Ok(())
    }

    fn receive(&mut self, from: Neighbour, address: Address) -> Result<Bytes, ChannelError> {
        self.check_session(from, address)?;
        let frame =
            self.lane.receive(from, self.patience).map_err(|error| Self::failure(from, address, error))?;
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
        Ok(message.payload)
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
