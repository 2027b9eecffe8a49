//! Replaces the bytes of an answer that is to be garbage or too large, below the generated server, which cannot do either.

use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;

use crate::calls::SPOIL;

/// A generated server whose answers can be spoilt.
#[derive(Debug, Clone)]
pub(crate) struct Spoil<S>(pub(crate) S);

impl<S: NamedService> NamedService for Spoil<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Spoil<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let bytes = match answer.headers().get(SPOIL).map(AsRef::<[u8]>::as_ref) {
                Some(b"garbage") => garbage(),
                // Neither a message nor a status: what is left of an answer that was cut off.
                Some(b"lost") => return Ok(answer.map(|_| Body::empty())),
                Some(_) => oversize(),
                None => return Ok(answer),
            };
            Ok(answer.map(|_| Body::new(bytes)))
        })
    }
}

/// A frame of four bytes that are no message: field 0 of a type that does not exist.
fn garbage() -> String {
    "\0\0\0\0\u{4}\u{7}\u{7}\u{7}\u{7}".to_owned()
}

/// A frame of 8 MiB, or as near as a length of printable bytes comes.
fn oversize() -> String {
    format!("\0\0\u{7f}\u{7f}\u{7f}{}", "x".repeat(0x007f_7f7f))
}
