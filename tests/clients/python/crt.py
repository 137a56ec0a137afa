"""awscrt, the Python binding of the AWS CRT: its default chain. Its PYTHONPATH decides which version this is."""

import asking
from awscrt import auth, io

TIME_LIMIT_SECONDS = 25

event_loops = io.EventLoopGroup(1)
bootstrap = io.ClientBootstrap(event_loops, io.DefaultHostResolver(event_loops))
provider = auth.AwsCredentialsProvider.new_default_chain(bootstrap)

asking.answer_each_line(lambda: provider.get_credentials().result(TIME_LIMIT_SECONDS).access_key_id)
