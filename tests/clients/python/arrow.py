"""pyarrow, which has the AWS SDK for C++: a file system on S3 with the default chain.

It cannot show its credentials, so the S3 service is a server of this process that keeps how the request was signed.
"""

import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import asking
from pyarrow import fs


class NothingThere(BaseHTTPRequestHandler):
    signed = None

    def do_HEAD(self):
        NothingThere.signed = self.headers.get("Authorization")
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_arguments):
        pass


def access_key_id():
    NothingThere.signed = None
    s3.get_file_info("bucket/object")
    found = re.search("Credential=([^/]+)/", NothingThere.signed or "")
    if not found:
        raise LookupError("the request was not signed")
    return found[1]


server = HTTPServer(("127.0.0.1", 0), NothingThere)
threading.Thread(target=server.serve_forever, daemon=True).start()
endpoint = f"127.0.0.1:{server.server_port}"
# Each file system has a client of the metadata service, which remembers whether it uses tokens.
s3 = fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="eu-central-1")
asking.answer_each_line(access_key_id)
