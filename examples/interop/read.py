"""Reads messages with the CloudEvents SDK for Python: from each line of JSON, {"headers": {name:
value}, "body": base64}, to one that says what the SDK makes of it. The SDK has no binding for NATS;
that for HTTP maps headers the same way.
"""

import base64
import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

for line in sys.stdin:
    message = json.loads(line)
    body = base64.b64decode(message["body"])
    event = from_http(HTTPMessage(message["headers"], body), JSONFormat(), CloudEvent)
    data = event.get_data()
    if isinstance(data, (bytes, bytearray)):
        data = {"bytes": base64.b64encode(data).decode()}
    attributes = {name: str(value) for name, value in event.get_attributes().items()}
    print(json.dumps({"attributes": attributes, "data": data}))
