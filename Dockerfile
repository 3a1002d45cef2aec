# Training and testing in one image, as the challenge's hand-in demands:
#   docker build -t klassify .
# submissions/README.md shows both commands with what they mount.
FROM python:3.11-slim

# OpenCV and MediaPipe load libGL and GLib; the stages run through make
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 make \
    && rm -rf /var/lib/apt/lists/*

# HOME: caches, also for --user, which has no home of its own here
ENV HOME=/tmp PIP_NO_CACHE_DIR=1
WORKDIR /klassify

# the install by itself, so that a change to a recipe does not repeat it
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY klassify ./klassify
COPY recipes/setup.sh ./recipes/setup.sh
# corpus,report adds the speech synthesiser that the demo needs
ARG EXTRAS=report
RUN EXTRAS="$EXTRAS" recipes/setup.sh .venv

COPY Makefile ./Makefile
COPY recipes ./recipes

# train | test | klassify COMMAND | a target of make
ENTRYPOINT ["recipes/docker.sh"]
CMD ["help"]
