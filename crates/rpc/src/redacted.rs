//! `Debug` of the generated types that hold secrets: names of fields and lengths, never content.

use std::fmt;

use crate::v1::{
    Component, Hello, PredictRequest, ProtocolMessage, ResultChunk, SignedReceipt, UploadRequest, component,
    predict_request, upload_request,
};

/// Stands for secret bytes; shows how many there are.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "<{} secret bytes>", self.0)
    }
}

impl fmt::Debug for component::Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(seed) => formatter.debug_tuple("Seed").field(&Hidden(seed.len())).finish(),
            Self::DataBytes(length) => formatter.debug_tuple("DataBytes").field(length).finish(),
        }
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Component").field("kind", &self.kind).finish()
    }
}

impl fmt::Debug for predict_request::Message {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(header) => formatter.debug_tuple("Header").field(header).finish(),
            Self::Chunk(chunk) => formatter.debug_tuple("Chunk").field(&Hidden(chunk.len())).finish(),
        }
    }
}

impl fmt::Debug for PredictRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PredictRequest").field("message", &self.message).finish()
    }
}

impl fmt::Debug for upload_request::Message {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(header) => formatter.debug_tuple("Header").field(header).finish(),
            Self::Chunk(chunk) => formatter.debug_tuple("Chunk").field(&Hidden(chunk.len())).finish(),
        }
    }
}

impl fmt::Debug for UploadRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("UploadRequest").field("message", &self.message).finish()
    }
}

impl fmt::Debug for ResultChunk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ResultChunk")
            .field("component_slot", &self.component_slot())
            .field("bytes", &Hidden(self.bytes.len()))
            .finish()
    }
}

impl fmt::Debug for SignedReceipt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SignedReceipt")
            .field("receipt", &self.receipt)
            .field("signature", &self.signature)
            .field("result_key", &Hidden(self.result_key.len()))
            .finish()
    }
}

impl fmt::Debug for Hello {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Hello")
            .field("party", &self.party)
            .field("protocol_version", &self.protocol_version)
            .field("lane", &self.lane)
            .field("key_contribution", &Hidden(self.key_contribution.len()))
            .field("tasks", &self.tasks)
            .field("version", &self.version)
            .finish()
    }
}

impl fmt::Debug for ProtocolMessage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ProtocolMessage")
            .field("session", &self.session)
            .field("step", &self.step)
            .field("protocol", &self.protocol)
            .field("record", &self.record)
            .field("payload", &Hidden(self.payload.len()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::v1::{LaneFrame, PredictHeader, lane_frame};

    #[test]
    fn secret_bytes_are_not_shown() {
        let secret = Bytes::from_static(&[0xAB; 32]);
        let seed = Component { kind: Some(component::Kind::Seed(secret.clone())) };
        let shown = [
            format!(
                "{:?}",
                PredictRequest {
                    message: Some(predict_request::Message::Header(PredictHeader {
                        own: Some(seed.clone()),
                        next: Some(seed),
                        ..PredictHeader::default()
                    })),
                }
            ),
            format!(
                "{:?}",
                PredictRequest { message: Some(predict_request::Message::Chunk(secret.clone())) }
            ),
            format!("{:?}", UploadRequest { message: Some(upload_request::Message::Chunk(secret.clone())) }),
            format!("{:?}", ResultChunk { component_slot: 1, bytes: secret.clone() }),
            format!("{:?}", SignedReceipt { result_key: secret.clone(), ..SignedReceipt::default() }),
            format!(
                "{:?}",
                LaneFrame {
                    frame: Some(lane_frame::Frame::Hello(Hello {
                        key_contribution: secret.clone(),
                        ..Hello::default()
                    })),
                }
            ),
            format!("{:?}", ProtocolMessage { payload: secret, ..ProtocolMessage::default() }),
        ];
        for text in shown {
            assert!(text.contains("<32 secret bytes>"), "{text}");
            // 0xAB is shown as `\xab` by `Bytes` and as `171` by slices and vectors.
            assert!(!text.contains("\\xab") && !text.contains("171"), "{text}");
        }
    }
}
