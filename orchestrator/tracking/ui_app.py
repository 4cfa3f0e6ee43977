"""MLflow's own server, whose pages open as those of trained models: an app plug-in of MLflow (`mlflow.app`).

Where an address names no view, MLflow 3.17 shows what the browser remembers, at first the view for chat applications,
and opens a chat beside it. So the first page of a browser that remembers nothing tells it what a person here looks for;
what somebody chose stays. Knows the names under which MLflow's pages remember, and nothing of runs.
"""

from __future__ import annotations

import json

from flask import Response, request
from mlflow.server import app as _flask
from mlflow.server.fastapi_app import app as app  # what `mlflow server` runs, with the Flask application inside

REMEMBERED = {
    "mlflow.workflowType_v1": json.dumps("machine_learning"),
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": json.dumps(True),
}
"""What MLflow's pages keep in a browser: the view, and that the chat was opened once."""
SCRIPT = (
    f"<script>for (const [name, value] of Object.entries({json.dumps(REMEMBERED)}))"
    " if (localStorage.getItem(name) === null) localStorage.setItem(name, value);</script>"
)


@_flask.after_request
def _remembering(answer: Response) -> Response:
    """The one page that MLflow has, with the script before its own."""
    if answer.mimetype == "text/html" and answer.status_code == 200 and request.path.endswith("/"):
        answer.direct_passthrough = False
        answer.set_data(answer.get_data(as_text=True).replace("<head>", f"<head>{SCRIPT}", 1))
        for name in ("ETag", "Last-Modified"):  # a page that a browser kept is the same file without the script
            answer.headers.pop(name, None)
    return answer
