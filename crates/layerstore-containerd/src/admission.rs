//! Around every call: what it may take before its own code sees it.
//!
//! A request must come whole within a time, only so many wait, and what is too large for the protocol's library is told
//! in our words, as InvalidArgument.

use crate::bounds;
use crate::connections::Client;
use http::{HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};
use tower_layer::Layer;
use tower_service::Service;

/// Puts [`Admitted`] around a service.
#[derive(Clone)]
pub(crate) struct Admission(Arc<Semaphore>);

impl Admission {
    /// Takes `calls` requests at a time, and [`bounds::WAITING`] that wait.
    pub(crate) fn new(calls: usize) -> Self {
        Self(Arc::new(Semaphore::new(calls + bounds::WAITING)))
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { inner, places: self.0.clone() }
    }
}

/// See the [module](self).
#[derive(Clone)]
pub(crate) struct Admitted<S> {
    inner: S,
    places: Arc<Semaphore>,
}

impl<S> Service<Request<Body>> for Admitted<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = request.extensions().get::<Arc<Client>>().map(|client| client.clone().call());
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            let status = Status::resource_exhausted("too many calls are waiting");
            return Box::pin(async move { Ok(status.into_http()) });
        };
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let request = request.map(|body| {
            Body::new(Hurried { inner: Box::pin(body), patience: Box::pin(tokio::time::sleep(bounds::REQUEST)) })
        });
        Box::pin(async move {
            let _kept = (call, place);
            inner.call(request).await.map(in_our_words)
        })
    }
}

/// The library that decodes requests says OutOfRange, of a length, where containerd says InvalidArgument.
fn in_our_words(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    let code = |code: Code| HeaderValue::from(code as i32);
    let too_large = headers.get("grpc-status").is_some_and(|status| *status == code(Code::OutOfRange));
    if too_large {
        headers.insert("grpc-status", code(Code::InvalidArgument));
        let text = "the%20request%20is%20larger%20than%201%20MiB";
        headers.insert("grpc-message", HeaderValue::from_static(text));
    }
    response
}

/// A body that must come within a time.
struct Hurried {
    inner: Pin<Box<Body>>,
    patience: Pin<Box<Sleep>>,
}

impl http_body::Body for Hurried {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let frame @ Poll::Ready(_) = self.inner.as_mut().poll_frame(cx) {
            return frame;
        }
        match self.patience.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(Status::deadline_exceeded("the request does not come")))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A body that never comes.
    struct Never;

    impl http_body::Body for Never {
        type Data = <Body as http_body::Body>::Data;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_request_that_does_not_come_ends() {
        let patience = Box::pin(tokio::time::sleep(Duration::from_millis(1)));
        let mut body = Hurried { inner: Box::pin(Body::new(Never)), patience };
        let frame = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)).await;
        assert_eq!(frame.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    }

    #[test]
    fn what_is_too_large_is_an_invalid_argument() {
        let answer = |status: Status| in_our_words(status.into_http());
        let code = |status| Status::from_header_map(answer(status).headers()).unwrap().code();
        assert_eq!(code(Status::out_of_range("decoded message length too large")), Code::InvalidArgument);
        assert_eq!(code(Status::not_found("x")), Code::NotFound);
    }
}
