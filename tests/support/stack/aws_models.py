"""One reader of botocore's service models for every AWS client of this process, and of the processes that it forks.

Each session reads the models again and searches the folders of all services, which takes longer than most requests.
"""

from __future__ import annotations

from functools import cache

import boto3
from botocore import session

session.create_loader = cache(session.create_loader)
# imports what the first client would import, and fills the reader
boto3.client("kms", region_name="none", aws_access_key_id="none", aws_secret_access_key="none").close()
