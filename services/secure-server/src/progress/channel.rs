//! The protocols' channel, observed: what is waited for, what is sent, which stage it is.

use concilium_mpc::{Address, Bytes, Channel, ChannelError, Neighbour, PartyIndex, Progress, Stage};

use super::{LaneProgress, Round, Step, Steps};
use crate::metrics;

/// What was sent to one server.
#[derive(Clone, Copy, Default)]
struct Sent {
    messages: u64,
    bytes: u64,
}

/// Passes messages on and notes what they belong to. Looks at lengths and addresses, never at
/// payloads.
pub(crate) struct ObservedChannel<'a, C> {
    channel: C,
    here: PartyIndex,
    progress: &'a LaneProgress,
    steps: &'a mut Steps,
    stage: Stage,
    round: Round,
    /// Messages and payload bytes sent to the next and the previous server.
    sent: [Sent; 2],
}

impl<'a, C> ObservedChannel<'a, C> {
    /// Observes one session of a task.
    pub(crate) fn new(
        channel: C,
        here: PartyIndex,
        task: &str,
        progress: &'a LaneProgress,
        steps: &'a mut Steps,
    ) -> Self {
        let round = Round { number: 0, of: progress.rounds_of(task) };
        ObservedChannel {
            channel,
            here,
            progress,
            steps,
            stage: Stage::Opening,
            round,
            sent: Default::default(),
        }
    }

    fn peer(&self, neighbour: Neighbour) -> PartyIndex {
        match neighbour {
            Neighbour::Next => self.here.next(),
            Neighbour::Previous => self.here.previous(),
        }
    }
}

impl<C: Channel> Channel for ObservedChannel<'_, C> {
    fn send(&mut self, to: Neighbour, address: Address, payload: Bytes) -> Result<(), ChannelError> {
        let bytes = payload.len();
        self.channel.send(to, address, payload)?;
        let sent = &mut self.sent[usize::from(to == Neighbour::Previous)];
        sent.messages += 1;
        sent.bytes += bytes as u64;
        tracing::trace!(peer = %self.peer(to), step = %address.step, record = address.record, bytes, "sent");
        Ok(())
    }

    fn receive(&mut self, from: Neighbour, address: Address) -> Result<Bytes, ChannelError> {
        let peer = self.peer(from);
        let waiting = self.progress.wait(Step::Compute(self.stage), Some(self.round), Some(peer));
        let payload = self.channel.receive(from, address)?;
        self.steps.note_wait(waiting.end());
        let bytes = payload.len();
        tracing::trace!(%peer, step = %address.step, record = address.record, bytes, "received");
        Ok(payload)
    }

    fn note_progress(&mut self, Progress { stage, round }: Progress) {
        self.round.number = round;
        if stage != self.stage {
            self.stage = stage;
            self.steps.enter(Step::Compute(stage));
        }
        self.channel.note_progress(Progress { stage, round });
    }
}

impl<C> Drop for ObservedChannel<'_, C> {
    fn drop(&mut self) {
        for (peer, Sent { messages, bytes }) in
            [self.here.next(), self.here.previous()].into_iter().zip(self.sent)
        {
            metrics::count_sent(peer, messages, bytes);
        }
    }
}
