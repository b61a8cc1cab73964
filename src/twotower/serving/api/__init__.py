"""The wire: what comes in and goes out, path by path.

In reading order: `messages.py`, `protocol_messages.py` and `admin_messages.py` (bodies), `deploying.py` (which bundles
answer), `service.py` (what each call does), `quick.py` (bytes to message to bytes), `refusing.py` (how a refusal
looks), `app.py` (the routes), `protocol.py` (the Open Inference Protocol), `admin.py` (the admin's routes),
`describing.py` (what is served), `openapi.py` (the document), `page_routes.py` (the page of `page/`).
"""
