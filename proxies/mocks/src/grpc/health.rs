//! `grpc.health.v1.Health`: whatever is asked for is SERVING.

use bytes::{Bytes, BytesMut};

use super::put_message;

/// Is it one of its methods, and which?
pub(super) fn method(path: &str) -> Option<&str> {
    path.strip_prefix("/grpc.health.v1.Health/")
        .filter(|name| matches!(*name, "Check" | "Watch"))
}

/// HealthCheckResponse with status = SERVING (grpc/health/v1/health.proto).
pub(super) fn serving() -> Bytes {
    let mut out = BytesMut::new();
    put_message(&mut out, &[0x08, 1]);
    out.freeze()
}
