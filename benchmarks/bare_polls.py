"""Poll repositories with conditional requests at a steady pace: the loop that the listener's polls are compared with.

`python -m benchmarks.bare_polls HG REPOSITORIES RATE SECONDS` prints its requests and the CPU seconds they took.
"""

import sys
import time

import httpx


def main(hg: str, repositories: int, rate: float, seconds: float) -> None:
    """Poll each repository in turn, `rate` times a second."""
    urls = [f"{hg}/r{n}/json-pushes?version=2&full=1&startID=0&endID=101" for n in range(repositories)]
    with httpx.Client(headers={"User-Agent": "tc-treeherder"}) as client:
        tags = [client.get(url).headers["etag"] for url in urls]
        began, cpu = time.monotonic(), time.process_time()
        requests = 0
        while (left := began + requests / rate - time.monotonic()) < began + seconds - time.monotonic():
            time.sleep(max(left, 0))
            number = requests % repositories
            answer = client.get(urls[number], headers={"If-None-Match": tags[number]})
            assert answer.status_code == httpx.codes.NOT_MODIFIED
            requests += 1
        sys.stdout.write(f"{requests} {time.process_time() - cpu}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
